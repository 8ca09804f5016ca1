-- Readings as native partitions by day, made ahead and on demand by cloud_ingest/store/days.py; what no day takes
-- (a clock in another century) goes to the default partition.

CREATE TABLE readings (
    ts          timestamptz NOT NULL,
    series_id   int,
    value       float8,
    status_code int
) PARTITION BY RANGE (ts);
CREATE INDEX readings_series_ts ON readings (series_id, ts);
CREATE TABLE readings_other PARTITION OF readings DEFAULT;
