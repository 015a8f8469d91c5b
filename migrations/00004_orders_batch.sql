-- Orders of a batch, in the order in which they came.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS orders_batch;
CREATE INDEX CONCURRENTLY orders_batch ON orders (issuer_id, batch_id, id) WHERE batch_id IS NOT NULL;
RESET lock_timeout;
