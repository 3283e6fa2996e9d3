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

-- Every sound candidate of a group (workload, device, toolchain, kind), the best at place 1:
-- 1. Left out is what failed, what was ever found wrong in its group, and every binary that was
--    ever found wrong anywhere.
-- 2. A candidate that was timed in several runs stands by its lower median run (ties by row id).
-- 3. The candidate with the lowest median leads (ties by candidate id). Whoever's interval reaches
--    down to the upper end of the leader's is tied with it.
-- 4. Of the tied: the default, then less shared memory, then fewer registers (unknown last), then
--    the shorter params text, then the smaller candidate id. Behind them the rest by median.
-- kdsl/runtime/records/select.py computes the same over rows that are in no database.
CREATE VIEW standing AS
WITH sound AS (
    SELECT m.*, c.params
    FROM measurement m
    JOIN candidate c ON c.id = m.candidate_id
    WHERE m.status = 'ok'
      AND NOT EXISTS (
        SELECT 1 FROM measurement w
        WHERE w.status = 'wrong' AND w.binary_hash <> '' AND w.binary_hash = m.binary_hash)
      AND NOT EXISTS (
        SELECT 1 FROM measurement w
        WHERE w.status = 'wrong' AND w.workload_id = m.workload_id
          AND w.device_id = m.device_id AND w.toolchain_id = m.toolchain_id
          AND w.candidate_id = m.candidate_id)
),
timed AS (
    SELECT sound.*,
           ROW_NUMBER() OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind, candidate_id
               ORDER BY median_us, id) AS by_time,
           COUNT(*) OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind, candidate_id) AS runs,
           MAX(is_default) OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind, candidate_id)
               AS ever_default
    FROM sound
),
typical AS (
    SELECT timed.*,
           FIRST_VALUE(COALESCE(ci_hi_us, median_us)) OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind
               ORDER BY median_us, candidate_id) AS bar
    FROM timed
    WHERE by_time = (runs + 1) / 2
),
judged AS (
    SELECT typical.*,
           CASE WHEN COALESCE(ci_lo_us, median_us) <= bar THEN 1 ELSE 0 END AS tied
    FROM typical
)
SELECT id AS measurement_id, workload_id, device_id, toolchain_id, kind, candidate_id, params,
       median_us, ci_lo_us, ci_hi_us, runs, ever_default, tied,
       ROW_NUMBER() OVER (
           PARTITION BY workload_id, device_id, toolchain_id, kind
           ORDER BY tied DESC,
                    CASE WHEN tied = 1 THEN 1 - ever_default ELSE 0 END,
                    CASE WHEN tied = 1 THEN COALESCE(shared_bytes, 4294967296) ELSE 0 END,
                    CASE WHEN tied = 1 THEN COALESCE(registers, 4294967296) ELSE 0 END,
                    CASE WHEN tied = 1 THEN LENGTH(params) ELSE 0 END,
                    CASE WHEN tied = 1 THEN 0.0 ELSE median_us END,
                    candidate_id) AS place
FROM judged;

CREATE VIEW best_measured AS
SELECT * FROM standing WHERE place = 1 AND kind = 'measured';

CREATE VIEW best_predicted AS
SELECT * FROM standing WHERE place = 1 AND kind = 'predicted';
