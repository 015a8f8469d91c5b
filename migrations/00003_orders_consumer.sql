-- Orders of a consumer, newest first.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS orders_consumer;
CREATE INDEX CONCURRENTLY orders_consumer ON orders (issuer_id, consumer_id, id);
RESET lock_timeout;
