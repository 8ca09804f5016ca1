-- Readings as a hypertable with a columnstore. No unique index, constraint or trigger: any of them would switch
-- direct compression off, with nothing but a warning. The batch ledger is what keeps duplicates out.

CREATE TABLE readings (
    ts          timestamptz NOT NULL,
    series_id   int,
    value       float8,
    status_code int
);
SELECT create_hypertable('readings', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
ALTER TABLE readings SET (
    timescaledb.enable_columnstore,
    timescaledb.segmentby = '',
    timescaledb.orderby = 'series_id, ts'
);
CREATE INDEX readings_series_ts ON readings (series_id, ts);

SELECT create_hypertable('windows_1m', by_range('window_start', INTERVAL '7 days'), create_default_indexes => false);
SELECT create_hypertable('windows_5m', by_range('window_start', INTERVAL '28 days'), create_default_indexes => false);
