-- Whatever advances an order has to know whether a change of it is open: the lock of its
-- state reads that along. Null for nearly all orders.

-- +goose Up

ALTER TABLE order_state ADD COLUMN open_changes jsonb; -- those of order_changes that D1 may still answer
