-- The tuning database, for SQLite and PostgreSQL alike: BIGINT and DOUBLE PRECISION mean the same
-- in both, JSON is text, a flag is 0 or 1. Rows are only ever added; ids are hashes of content.
-- A statement ends with ";" at the end of a line.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE workload (
    id         TEXT PRIMARY KEY,
    op         TEXT NOT NULL,
    program    TEXT NOT NULL,
    dtypes     TEXT NOT NULL,
    dims       TEXT NOT NULL,
    align      TEXT NOT NULL,
    mask_stats TEXT NOT NULL,
    numerics   TEXT NOT NULL,
    spec_json  TEXT NOT NULL,
    extra      TEXT NOT NULL
);

CREATE TABLE device (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    cc           BIGINT NOT NULL,
    sms          BIGINT NOT NULL,
    memory_bytes BIGINT,
    smem_optin   BIGINT,
    l2_bytes     BIGINT,
    power_cap_w  DOUBLE PRECISION,
    mig          TEXT NOT NULL,
    extra        TEXT NOT NULL
);

CREATE TABLE toolchain (
    id            TEXT PRIMARY KEY,
    kdsl          TEXT NOT NULL,
    template_hash TEXT NOT NULL,
    triton        TEXT NOT NULL,
    ptxas         TEXT NOT NULL,
    nvrtc         TEXT NOT NULL,
    cuda          TEXT NOT NULL,
    driver        TEXT NOT NULL,
    torch         TEXT NOT NULL,
    numerics_env  TEXT NOT NULL,
    extra         TEXT NOT NULL
);

CREATE TABLE candidate (
    id         TEXT PRIMARY KEY,
    space_hash TEXT NOT NULL,
    params     TEXT NOT NULL,
    extra      TEXT NOT NULL
);

CREATE TABLE run (
    id        TEXT PRIMARY KEY,
    started   TEXT NOT NULL,
    command   TEXT NOT NULL,
    budget    TEXT NOT NULL,
    sampler   TEXT NOT NULL,
    seed      BIGINT,
    git_rev   TEXT NOT NULL,
    git_dirty BIGINT NOT NULL,
    host      TEXT NOT NULL,
    card      TEXT NOT NULL,
    nonce     TEXT NOT NULL,
    closes    TEXT NOT NULL,
    ended     TEXT NOT NULL,
    complete  BIGINT NOT NULL,
    counts    TEXT NOT NULL,
    part_of   TEXT NOT NULL,
    extra     TEXT NOT NULL
);

CREATE TABLE measurement (
    id           TEXT PRIMARY KEY,
    workload_id  TEXT NOT NULL REFERENCES workload (id),
    device_id    TEXT NOT NULL REFERENCES device (id),
    toolchain_id TEXT NOT NULL REFERENCES toolchain (id),
    candidate_id TEXT NOT NULL REFERENCES candidate (id),
    run_id       TEXT NOT NULL REFERENCES run (id),
    kind         TEXT NOT NULL CHECK (kind IN ('measured', 'predicted')),
    status       TEXT NOT NULL,
    created      TEXT NOT NULL,
    reason       TEXT NOT NULL,
    is_default   BIGINT NOT NULL,
    n            BIGINT NOT NULL,
    median_us    DOUBLE PRECISION,
    p20_us       DOUBLE PRECISION,
    p80_us       DOUBLE PRECISION,
    ci_lo_us     DOUBLE PRECISION,
    ci_hi_us     DOUBLE PRECISION,
    samples      TEXT NOT NULL,
    registers    BIGINT,
    spill_bytes  BIGINT,
    shared_bytes BIGINT,
    stack_bytes  BIGINT,
    binary_hash  TEXT NOT NULL,
    clock_mhz    DOUBLE PRECISION,
    temp_c       DOUBLE PRECISION,
    error        DOUBLE PRECISION,
    extra        TEXT NOT NULL,
    CHECK (status <> 'ok' OR median_us > 0)
);

CREATE INDEX workload_by_program ON workload (op, program);
CREATE INDEX measurement_by_key ON measurement (workload_id, device_id);
CREATE INDEX measurement_wrong ON measurement (binary_hash) WHERE status = 'wrong';
