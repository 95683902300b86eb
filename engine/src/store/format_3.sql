-- The verdict to which an entry goes back; an entry with several has several rows. Of earlier entries, all verdicts of the
-- same words are taken, until the next run says which it was.
ALTER TABLE quarantine ADD COLUMN key BLOB;
INSERT INTO quarantine (pipeline, unit, path, stage, class, reason, run, key)
    SELECT q.pipeline, q.unit, q.path, q.stage, q.class, q.reason, q.run, m.key
    FROM quarantine q JOIN memo m ON m.bad = q.reason
        OR (m.bad GLOB 'transient stage [0-9]*: *' AND substr(m.bad, instr(m.bad, ': ') + 2) = q.reason)
    WHERE q.class = 'bad';
DELETE FROM quarantine
    WHERE key IS NULL
    AND (pipeline, stage, unit, reason) IN (SELECT pipeline, stage, unit, reason FROM quarantine WHERE key IS NOT NULL);
