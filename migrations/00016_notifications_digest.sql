-- A repeat is recognised by notifications_content and notifications_unmatched: this index had
-- new rows anywhere in it, and cost the more the larger it grew. A replica of the release
-- before needs it: it answers 503 to D1 until it is replaced.

-- +goose NO TRANSACTION
-- +goose Up

-- Dropping waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS notifications_digest;
RESET lock_timeout;
