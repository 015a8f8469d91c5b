-- Messages set aside after a refusal: few or none.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS outbox_refused;
CREATE INDEX CONCURRENTLY outbox_refused ON outbox (lane, refused_at) WHERE refused_at IS NOT NULL;
RESET lock_timeout;
