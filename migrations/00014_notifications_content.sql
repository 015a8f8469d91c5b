-- The contents of an order's notifications, by which a repeat is recognised. Ids of orders
-- begin with the time, so that new rows land close to each other.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS notifications_content;
CREATE UNIQUE INDEX CONCURRENTLY notifications_content ON notifications (issuer_id, order_id, digest) WHERE order_id IS NOT NULL;
RESET lock_timeout;
