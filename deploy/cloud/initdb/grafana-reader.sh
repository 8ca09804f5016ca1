#!/bin/sh
# Runs once, when the database is made: dashboards read everything and write nothing.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$GRAFANA_DB_PASSWORD" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE grafana LOGIN PASSWORD :'password' CONNECTION LIMIT 20;
GRANT pg_read_all_data TO grafana;
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '30s';
SQL
