-- Files outside the store: read again only when the stamp differs.
CREATE TABLE seen_file (
    path BLOB PRIMARY KEY,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
    read_ns INTEGER NOT NULL,
    hash BLOB NOT NULL
) WITHOUT ROWID;

-- The bytes of rows, Arrow IPC: short ones here, long ones as a blob.
CREATE TABLE payload (
    content BLOB PRIMARY KEY,
    bytes BLOB,
    blob BLOB,
    CHECK ((bytes IS NULL) <> (blob IS NULL))
);

-- Computed units by the hash of all that determines them. `bad` is why there are no rows.
CREATE TABLE memo (
    key BLOB PRIMARY KEY,
    stage TEXT NOT NULL, kind TEXT NOT NULL,
    bad TEXT,
    seconds REAL NOT NULL, run INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE memo_row (
    key BLOB NOT NULL, position INTEGER NOT NULL,
    name TEXT NOT NULL, content BLOB NOT NULL, files TEXT NOT NULL, len INTEGER NOT NULL,
    PRIMARY KEY (key, position)
) WITHOUT ROWID;

-- What each pipeline yields now.
CREATE TABLE published (
    pipeline TEXT NOT NULL, stage TEXT NOT NULL, id TEXT NOT NULL,
    content BLOB NOT NULL, origin TEXT, files TEXT NOT NULL, run INTEGER NOT NULL,
    PRIMARY KEY (pipeline, stage, id)
) WITHOUT ROWID;

CREATE TABLE quarantine (
    pipeline TEXT NOT NULL, unit TEXT NOT NULL, path TEXT, stage TEXT NOT NULL,
    class TEXT NOT NULL, reason TEXT NOT NULL, run INTEGER NOT NULL
);
CREATE INDEX quarantine_pipeline ON quarantine (pipeline);

-- Files that stand outside the store: `root` is the folder, `version` 0 where it has none.
CREATE TABLE placed (
    pipeline TEXT NOT NULL, stage TEXT NOT NULL, root TEXT NOT NULL, version INTEGER NOT NULL, file TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, blob BLOB NOT NULL,
    PRIMARY KEY (pipeline, stage, root, file)
) WITHOUT ROWID;

CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pipeline TEXT NOT NULL, settings TEXT NOT NULL,
    started_ms INTEGER NOT NULL, published_ms INTEGER, finished_ms INTEGER,
    outcome TEXT, report TEXT
);
CREATE INDEX run_pipeline ON run (pipeline, id);
