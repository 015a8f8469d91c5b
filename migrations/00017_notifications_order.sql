-- The notifications of an order are found by notifications_content.

-- +goose NO TRANSACTION
-- +goose Up

-- Dropping waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS notifications_order;
RESET lock_timeout;
