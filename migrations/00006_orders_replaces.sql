-- The orders that replace an order.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS orders_replaces;
CREATE INDEX CONCURRENTLY orders_replaces ON orders (issuer_id, replaces_order_id) WHERE replaces_order_id IS NOT NULL;
RESET lock_timeout;
