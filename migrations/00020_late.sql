-- Where an order has been late already, and what each event left of it.
-- Adding columns with constant defaults touches no row.

-- +goose Up

ALTER TABLE order_state ADD COLUMN late_in text[]; -- statuses: no budget makes it late there again
ALTER TABLE order_events ADD COLUMN late boolean NOT NULL DEFAULT false;
