-- Orders of a container of a BULK shipment.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS orders_group;
CREATE INDEX CONCURRENTLY orders_group ON orders (issuer_id, group_id, id) WHERE group_id IS NOT NULL;
RESET lock_timeout;
