-- Windows. m2, first_ts and last_ts are what merging late readings into a row needs.

CREATE TABLE windows_1m (
    series_id    int NOT NULL,
    window_start timestamptz NOT NULL,
    count        bigint NOT NULL,
    mean         float8,
    min          float8,
    max          float8,
    first        float8,
    last         float8,
    stddev       float8,
    bad_count    bigint NOT NULL,
    revision     int NOT NULL DEFAULT 0,
    m2           float8 NOT NULL,
    first_ts     timestamptz,
    last_ts      timestamptz,
    PRIMARY KEY (series_id, window_start)
);

CREATE TABLE windows_5m (
    series_id    int NOT NULL,
    window_start timestamptz NOT NULL,
    count        bigint NOT NULL,
    mean         float8,
    min          float8,
    max          float8,
    first        float8,
    last         float8,
    stddev       float8,
    bad_count    bigint NOT NULL,
    revision     int NOT NULL DEFAULT 0,
    m2           float8 NOT NULL,
    first_ts     timestamptz,
    last_ts      timestamptz,
    PRIMARY KEY (series_id, window_start)
);

