-- Orders that D1 is to be asked about, by when. They change this column rarely, so
-- that changes of status stay within their page (HOT).
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS order_state_check;
CREATE INDEX CONCURRENTLY order_state_check ON order_state (issuer_id, next_check_at) WHERE next_check_at IS NOT NULL;
RESET lock_timeout;
