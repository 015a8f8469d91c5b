-- What happened when: events come in the order of time, so a few bytes for each thousand
-- of them find a day's.
-- An index that an interrupted run left behind is not valid: it is built anew.

-- +goose NO TRANSACTION
-- +goose Up

-- Building waits for older transactions, holding up nobody meanwhile.
SET lock_timeout = 0;
DROP INDEX CONCURRENTLY IF EXISTS order_events_created;
CREATE INDEX CONCURRENTLY order_events_created ON order_events USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);
RESET lock_timeout;
