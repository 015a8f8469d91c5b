-- The same of notifications that belong to no order: few.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS notifications_unmatched;
CREATE UNIQUE INDEX CONCURRENTLY notifications_unmatched ON notifications (issuer_id, digest) WHERE order_id IS NULL;
RESET lock_timeout;
