-- What is computed from the tables; made anew by every migration, so each version has its own.

-- Every sound candidate of a group (workload, device, toolchain, kind), the best at place 1:
-- 1. Left out is what failed, what was ever found wrong in its group, and every binary that was
--    ever found wrong anywhere.
-- 2. A candidate that was timed in several runs stands by its lower median run (ties by row id).
-- 3. The fastest few are timed again when the card is warm. Who was timed once is held against them
--    with its time multiplied by the heat: the median of the first of those that were timed again,
--    over its quickest run.
-- 4. The candidate with the lowest time leads (ties by candidate id). Whoever's interval reaches
--    down to the upper end of the leader's is tied with it, but for those that were timed once
--    where the leader was timed again.
-- 5. Of the tied: the default, then less shared memory, then fewer registers (unknown last), then
--    the shorter params text, then the smaller candidate id. Behind them the rest by time.
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
               AS ever_default,
           MIN(median_us) OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind, candidate_id)
               AS quickest_us
    FROM sound
),
typical AS (
    SELECT timed.*,
           CASE WHEN runs = 1 THEN FIRST_VALUE(median_us / quickest_us) OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind
               ORDER BY CASE WHEN runs = 1 THEN 1 ELSE 0 END, median_us, candidate_id)
           ELSE 1.0 END AS heat
    FROM timed
    WHERE by_time = (runs + 1) / 2
),
fair AS (
    SELECT typical.*,
           FIRST_VALUE(COALESCE(ci_hi_us, median_us) * heat) OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind
               ORDER BY median_us * heat, candidate_id) AS bar,
           FIRST_VALUE(runs) OVER (
               PARTITION BY workload_id, device_id, toolchain_id, kind
               ORDER BY median_us * heat, candidate_id) AS leader_runs
    FROM typical
),
judged AS (
    SELECT fair.*,
           CASE WHEN COALESCE(ci_lo_us, median_us) * heat <= bar
                     AND (runs > 1 OR leader_runs = 1) THEN 1 ELSE 0 END AS tied
    FROM fair
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
                    CASE WHEN tied = 1 THEN 0.0 ELSE median_us * heat END,
                    candidate_id) AS place
FROM judged;

CREATE VIEW best_measured AS
SELECT * FROM standing WHERE place = 1 AND kind = 'measured';

CREATE VIEW best_predicted AS
SELECT * FROM standing WHERE place = 1 AND kind = 'predicted';
