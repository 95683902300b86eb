-- Rows that were taken back, with the run that did it: until then their content was in use.
CREATE TABLE retired (
    content BLOB PRIMARY KEY,
    run INTEGER NOT NULL
) WITHOUT ROWID;
