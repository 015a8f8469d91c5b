-- Orders that are late: few.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS order_state_late;
CREATE INDEX CONCURRENTLY order_state_late ON order_state (issuer_id, order_id) WHERE late;
RESET lock_timeout;
