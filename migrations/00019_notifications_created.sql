-- Where a time begins among the notifications, which are stored in its order.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS notifications_created;
CREATE INDEX CONCURRENTLY notifications_created ON notifications USING brin (created_at);
RESET lock_timeout;
