-- Notifications that are about no order: deleted when they have been kept long enough.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS notifications_ignored;
CREATE INDEX CONCURRENTLY notifications_ignored ON notifications (created_at) WHERE outcome = 'ignored';
RESET lock_timeout;
