-- For people.

CREATE VIEW readings_named AS
SELECT r.ts, s.machine_id, s.tag, s.unit, r.value, r.status_code
FROM readings r JOIN series s USING (series_id);
