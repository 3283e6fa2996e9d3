-- A database as schema version 1 made it, with rows; see test_migrations.py.
CREATE TABLE candidate (
    id         TEXT PRIMARY KEY,
    space_hash TEXT NOT NULL,
    params     TEXT NOT NULL,
    extra      TEXT NOT NULL
);
INSERT INTO "candidate" VALUES('a43bcbcac9041f7c0ef3eae0ef8fa35b','s','{"block_q":32,"x":0.1,"y":true}','{}');
INSERT INTO "candidate" VALUES('f264b9457cae79537550b33c38253859','s','{"block_q":64,"x":0.1,"y":true}','{}');
INSERT INTO "candidate" VALUES('cfdec46025c9cf4cf90917c58fead685','s','{"block_q":128,"x":0.1,"y":true}','{}');
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
INSERT INTO "device" VALUES('599379528e56984ebcd82d1f241268bd','h100',90,132,NULL,NULL,NULL,700.0,'','{}');
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
INSERT INTO "meta" VALUES('schema_version','1');
INSERT INTO "meta" VALUES('salt','0000000000000000000000000000000000000000000000000000000000000000');
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
    extra     TEXT NOT NULL
);
INSERT INTO "run" VALUES('592bc1b27d6519b261991126b5888046','2026-01-01T00:00:00+00:00','python -m autotune --gpu h100','','',NULL,'',0,'00112233445566aa','','0011223344556677','','',0,'{}','{}');
INSERT INTO "run" VALUES('bd6a27e088d35d27ddf28f09bf407767','2026-01-01T00:00:00+00:00','','','',NULL,'',0,'','','','592bc1b27d6519b261991126b5888046','2026-01-01T00:02:00+00:00',1,'{"ok":3}','{}');
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
INSERT INTO "toolchain" VALUES('390b5301b1c05332f836e03bb70c71b1','0.1','','3.7.1','','','','','','','{}');
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
INSERT INTO "workload" VALUES('4f334587c18b17d79915deea534ce055','attention','p1','{"q":"bfloat16"}','{"head_dim":128,"tokens":32760}','{"q":16}','{"density":0.1}','{"tf32":false}','','{"later":[1.5,{"x":null}]}');
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
INSERT INTO "measurement" VALUES('1ccfaa2be8d0eedaf976608340c3ae9b','4f334587c18b17d79915deea534ce055','599379528e56984ebcd82d1f241268bd','390b5301b1c05332f836e03bb70c71b1','a43bcbcac9041f7c0ef3eae0ef8fa35b','592bc1b27d6519b261991126b5888046','measured','ok','2026-01-01T00:01:00+00:00','',0,0,900.0,NULL,NULL,NULL,NULL,'[900.0,300.0]',NULL,NULL,NULL,NULL,'',NULL,NULL,NULL,'{}');
INSERT INTO "measurement" VALUES('b0e4743ce381c03b8a18d4fe4cbccbad','4f334587c18b17d79915deea534ce055','599379528e56984ebcd82d1f241268bd','390b5301b1c05332f836e03bb70c71b1','f264b9457cae79537550b33c38253859','592bc1b27d6519b261991126b5888046','measured','ok','2026-01-01T00:01:00+00:00','',0,0,812.4,NULL,NULL,NULL,NULL,'[812.4,270.8]',NULL,NULL,NULL,NULL,'',NULL,NULL,NULL,'{}');
INSERT INTO "measurement" VALUES('18415f2f03cda9471f60c67c6951831e','4f334587c18b17d79915deea534ce055','599379528e56984ebcd82d1f241268bd','390b5301b1c05332f836e03bb70c71b1','cfdec46025c9cf4cf90917c58fead685','592bc1b27d6519b261991126b5888046','measured','ok','2026-01-01T00:01:00+00:00','',1,0,850.25,NULL,NULL,NULL,NULL,'[850.25,283.4166666666667]',NULL,NULL,NULL,NULL,'',NULL,NULL,NULL,'{}');
CREATE INDEX workload_by_program ON workload (op, program);
CREATE INDEX measurement_by_key ON measurement (workload_id, device_id);
CREATE INDEX measurement_wrong ON measurement (binary_hash) WHERE status = 'wrong';
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
SELECT * FROM standing WHERE place = 1 AND kind = 'predicted';;
