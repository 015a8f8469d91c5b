package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// eventsPerOrder is how often an order changes until it has arrived, at least.
const eventsPerOrder = 6

// runPreloaded measures accepting with empty tables and then with many orders
// stored, each over -duration, which should hold a whole checkpoint cycle.
func (b *bench) runPreloaded(ctx context.Context) error {
	if b.only == "intake" {
		return b.runPreloadedIntake(ctx)
	}
	clients := b.clients[0]
	measure := func(name string) (*result, error) {
		return b.overCheckpoints(ctx, func() (*result, error) { return b.driveService(ctx, name, b.server, clients, b.duration) })
	}
	if err := b.db.reset(ctx); err != nil {
		return err
	}
	empty, err := measure("accept, empty")
	if err != nil {
		return err
	}
	if err := b.db.reset(ctx); err != nil {
		return err
	}
	if err := b.fill(ctx, 0, nil); err != nil {
		return err
	}
	full, err := measure("accept, filled")
	if err != nil {
		return err
	}
	b.report()
	b.printf("  %-44s %5.2f   wanted: at least 0.7\n", fmt.Sprintf("%d orders stored / none", b.preload), full.rate/empty.rate)
	return nil
}

// runPreloadedIntake measures intake in large calls in the same way; each stored order has
// notificationsPerOrder notifications.
func (b *bench) runPreloadedIntake(ctx context.Context) error {
	in, err := b.newIntake(ctx)
	if err != nil {
		return err
	}
	measure := func(name string) (*result, error) {
		return b.overCheckpoints(ctx, func() (*result, error) { return in.drive(ctx, name, intakeBulk, 16, b.duration) })
	}
	if err := in.fillUnderWay(ctx, intakeOrders); err != nil {
		return err
	}
	empty, err := measure("intake, empty")
	if err != nil {
		return err
	}
	if err := in.fillUnderWay(ctx, intakeOrders); err != nil {
		return err
	}
	if err := b.fill(ctx, intakeOrders, in.oldNotifications); err != nil {
		return err
	}
	b.notified = notificationsPerOrder * b.preload
	full, err := measure("intake, filled")
	if err != nil {
		return err
	}
	b.report()
	b.printf("  %-44s %5.2f   wanted: at least 0.7\n",
		fmt.Sprintf("%d orders, %d notifications stored / none", b.preload, b.notified), full.rate/empty.rate)
	return nil
}

// overCheckpoints runs a measurement that should hold a whole checkpoint cycle.
func (b *bench) overCheckpoints(ctx context.Context, run measurement) (*result, error) {
	before, err := b.checkpoints(ctx)
	if err != nil {
		return nil, err
	}
	r, err := run()
	if err != nil {
		return nil, err
	}
	after, err := b.checkpoints(ctx)
	if err != nil {
		return nil, err
	}
	b.progress(0, r)
	b.printf("         checkpoints meanwhile: %d\n", after-before)
	if after == before {
		b.printf("         That is no whole cycle: give a longer -duration.\n")
	}
	b.results = append(b.results, r)
	return r, nil
}

// checkpoints that have begun.
func (b *bench) checkpoints(ctx context.Context) (n int, err error) {
	var version int
	if err := b.db.conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return 0, err
	}
	sql := `SELECT checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter`
	if version >= 170000 {
		sql = `SELECT num_timed + num_requested FROM pg_stat_checkpointer`
	}
	err = b.db.conn.QueryRow(ctx, sql).Scan(&n)
	return n, err
}

// fill stores orders that have arrived: the captured rows with other ids, which begin
// after the given one, as old ones, several events each, and nothing to send. more returns
// what else they have.
func (b *bench) fill(ctx context.Context, after int, more func(e expressions, from, to int) string) error {
	const chunk = 200_000
	e := manyOrders
	e.now = "now() - interval '60 days'"
	if _, err := b.db.conn.Exec(ctx, "SET synchronous_commit = off"); err != nil {
		return err
	}
	started := time.Now()
	for from := 1; from <= b.preload; from += chunk {
		to := min(from+chunk-1, b.preload)
		for _, r := range b.rows.rows {
			if r.table == "outbox" {
				continue
			}
			sql := b.rows.insertSelect(r, e, after+from, after+to)
			if _, err := b.db.conn.Exec(ctx, sql); err != nil {
				return fmt.Errorf("filling %s: %w", r.table, err)
			}
		}
		if more != nil {
			if _, err := b.db.conn.Exec(ctx, more(e, after+from, after+to)); err != nil {
				return fmt.Errorf("filling: %w", err)
			}
		}
		if to == b.preload || to%1_000_000 == 0 {
			b.printf("filling: %d orders in %s\n", to, time.Since(started).Round(time.Second))
		}
	}
	for _, sql := range []string{"RESET synchronous_commit", "VACUUM (ANALYZE)", "CHECKPOINT"} {
		if _, err := b.db.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	var err error
	b.stored, err = b.db.countOrders(ctx)
	if err != nil {
		return err
	}
	var size string
	if err := b.db.conn.QueryRow(ctx, "SELECT pg_size_pretty(pg_database_size(current_database()))").Scan(&size); err != nil {
		return err
	}
	b.printf("filled: %d orders, %s\n", b.stored, size)
	return nil
}

// manyOrders are those of a series n.
var manyOrders = expressions{
	order: `lpad(n::text, 32, '0')`, card: `md5(n::text || 'card')`, request: `md5(n::text || 'request')`,
	consumer: `md5(n::text || 'consumer')`, key: `md5(n::text || 'key')`, now: "now()",
}

// insertSelect writes many such rows, for orders that have ended.
func (c *captured) insertSelect(r row, e expressions, from, to int) string {
	source := fmt.Sprintf("generate_series(%d, %d) n", from, to)
	if r.table == "order_events" {
		source += fmt.Sprintf(", generate_series(1, %d) event", eventsPerOrder)
	}
	return c.insertMany(r, e, source, map[string]string{
		"order_events.seq":             "event",
		"order_state.version":          fmt.Sprint(eventsPerOrder),
		"order_state.status":           "'SHIPPED'",
		"order_state.rank":             "60",
		"order_state.step_rank":        "60",
		"order_state.top_rank":         "60",
		"order_state.operation_id":     e.key,
		"order_state.ended_at":         e.now,
		"order_state.next_check_at":    "NULL", // nothing is left to look for
		"card_guard.order_ids":         "'{}'", // open no longer; a CREATION stays for some time
		"card_guard.creation_order_id": "(" + e.order + ")::uuid",
		"card_guard.creation_until":    "now() + interval '10 days'",
	})
}

// insertMany writes a row like r for each of source; other has expressions for
// columns, by table.column, that are not as in r.
func (c *captured) insertMany(r row, e expressions, source string, other map[string]string) string {
	names, values := make([]string, len(r.columns)), make([]string, len(r.columns))
	for i, col := range r.columns {
		names[i] = quote(col.name)
		var ok bool
		if values[i], ok = other[r.table+"."+col.name]; !ok {
			values[i] = c.expression(col, e)
		}
	}
	return "INSERT INTO " + quote(r.table) + " (" + strings.Join(names, ", ") + ") SELECT " + strings.Join(values, ", ") + " FROM " + source
}
