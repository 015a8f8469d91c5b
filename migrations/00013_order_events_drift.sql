-- Events that asking D1 had to find: few.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS order_events_drift;
CREATE INDEX CONCURRENTLY order_events_drift ON order_events (issuer_id, created_at) WHERE cause = 'reconciliation';
RESET lock_timeout;
