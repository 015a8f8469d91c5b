package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"cardorder/internal/pgrun"
	"cardorder/internal/store"
)

// settings of the server: what fits a machine of a few gigabytes. Commits are as
// durable as in production.
var settings = map[string]string{
	"shared_buffers":     "1GB",
	"max_wal_size":       "8GB",
	"checkpoint_timeout": "5min",
	"synchronous_commit": "on",
}

// shown are the settings that are printed.
var shown = []string{
	"server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_level", "commit_delay",
	"shared_buffers", "max_wal_size", "checkpoint_timeout", "autovacuum",
}

// database is the server that everything is measured against.
type database struct {
	pg     *pgrun.Server
	conn   *pgx.Conn // of the benchmark itself
	pid    int       // of the postmaster
	seeded []string  // tables that are not empty when they are new
	tables []string  // the others

	statements bool // whether pg_stat_statements is there
}

// startDatabase starts it; statements makes it count what statements cost.
func startDatabase(ctx context.Context, statements bool) (_ *database, err error) {
	d := &database{statements: statements}
	settings := maps.Clone(settings)
	if statements {
		settings["shared_preload_libraries"] = "pg_stat_statements"
	}
	if d.pg, err = pgrun.Start(ctx, pgrun.Config{Fsync: true, MaxConnections: 400, Settings: settings}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = d.stop(ctx)
		}
	}()
	text, err := os.ReadFile(filepath.Join(d.pg.Dir(), "data", "postmaster.pid"))
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	if d.pid, err = strconv.Atoi(first); err != nil {
		return nil, fmt.Errorf("reading the postmaster's process id: %w", err)
	}
	if err := store.Migrate(ctx, d.url()); err != nil {
		return nil, err
	}
	if d.conn, err = pgx.Connect(ctx, d.url()); err != nil {
		return nil, err
	}
	if statements {
		_, err = d.conn.Exec(ctx, "CREATE EXTENSION pg_stat_statements")
	}
	return d, err
}

// url is the database over TCP: the way in which all connect that are compared.
func (d *database) url() string { return d.pg.URL("") }

func (d *database) stop(ctx context.Context) error {
	var err error
	if d.conn != nil {
		err = d.conn.Close(context.WithoutCancel(ctx))
	}
	return errors.Join(err, d.pg.Stop())
}

// lasting are tables that tell nothing of orders, and that a service at work relies on.
var lasting = []string{"database_history", "replicas"}

// findTables is called when the schema is complete and nothing is in it yet.
func (d *database) findTables(ctx context.Context) error {
	rows, err := d.conn.Query(ctx, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY relname`)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(lasting, name) {
			continue
		}
		var some bool
		if err := d.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+quote(name)+")").Scan(&some); err != nil {
			return err
		}
		if some {
			d.seeded = append(d.seeded, name)
		} else {
			d.tables = append(d.tables, name)
		}
	}
	return nil
}

// reset makes all start equal: with empty tables, and just after a checkpoint.
func (d *database) reset(ctx context.Context) error {
	quoted := make([]string, len(d.tables))
	for i, name := range d.tables {
		quoted[i] = quote(name)
	}
	truncate := "TRUNCATE " + strings.Join(quoted, ", ")
	_, err := d.conn.Exec(ctx, truncate)
	// The service may be at work with a message in its own order of locks.
	for try := 1; isDeadlock(err) && try < 10; try++ {
		_, err = d.conn.Exec(ctx, truncate)
	}
	if err != nil {
		return fmt.Errorf("emptying the tables: %w", err)
	}
	if _, err := d.conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("making a checkpoint: %w", err)
	}
	return nil
}

func isDeadlock(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "40P01"
}

func (d *database) countOrders(ctx context.Context) (n int, err error) {
	err = d.conn.QueryRow(ctx, "SELECT count(*) FROM orders").Scan(&n)
	return n, err
}

func (d *database) settings(ctx context.Context) (string, error) {
	var list []string
	for _, name := range shown {
		var value string
		if err := d.conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value); err != nil {
			return "", err
		}
		list = append(list, name+"="+value)
	}
	return strings.Join(list, " "), nil
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// column is one value of a row that an order writes.
type column struct {
	name, typ string
	value     *string // as text; nil is NULL
}

// row is a row that an order writes.
type row struct {
	table   string
	columns []column
	size    int // in bytes, as PostgreSQL stores it
}

// captured is all that one order writes, with the ids it has.
type captured struct {
	rows    []row
	ids     orderIDs
	orderID string
}

// capture reads back every row that belongs to an order that was placed, from
// whatever tables there are: those that name it, its request or its card.
func (d *database) capture(ctx context.Context, ids orderIDs) (*captured, error) {
	c := &captured{ids: ids}
	err := d.conn.QueryRow(ctx, `SELECT id::text FROM orders WHERE issuer_request_id = $1`, string(ids.request[:])).Scan(&c.orderID)
	if err != nil {
		return nil, fmt.Errorf("looking for the order: %w", err)
	}
	for _, table := range d.tables {
		rows, err := d.read(ctx, table, `strpos(t::text, $1) > 0 OR strpos(t::text, $2) > 0 OR strpos(t::text, $3) > 0`,
			c.orderID, string(ids.request[:]), string(ids.card[:]))
		if err != nil {
			return nil, err
		}
		c.rows = append(c.rows, rows...)
	}
	// The order first, as the service writes it.
	slices.SortStableFunc(c.rows, func(a, b row) int {
		switch {
		case a.table == b.table:
			return 0
		case a.table == "orders":
			return -1
		case b.table == "orders":
			return 1
		}
		return 0
	})
	return c, nil
}

// read reads rows of a table.
func (d *database) read(ctx context.Context, table, where string, args ...any) (list []row, err error) {
	columns, err := d.columns(ctx, table)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, col := range columns {
		names = append(names, quote(col.name)+"::text")
	}
	rows, err := d.conn.Query(ctx, `SELECT pg_column_size(t.*), ARRAY[`+strings.Join(names, ", ")+`] FROM `+quote(table)+` t WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", table, err)
	}
	var size int
	var values []*string
	_, err = pgx.ForEachRow(rows, []any{&size, &values}, func() error {
		r := row{table: table, columns: slices.Clone(columns), size: size}
		for i := range values {
			r.columns[i].value = values[i]
		}
		values = nil
		list = append(list, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", table, err)
	}
	return list, nil
}

// columns of a table that an INSERT names: what the database numbers or computes
// by itself is left to it.
func (d *database) columns(ctx context.Context, table string) ([]column, error) {
	rows, err := d.conn.Query(ctx, `
		SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
		LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
		WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped
			AND a.attidentity = '' AND a.attgenerated = ''
			AND coalesce(pg_get_expr(f.adbin, f.adrelid), '') NOT LIKE 'nextval(%'
		ORDER BY a.attnum`, quote(table))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (c column, err error) {
		err = r.Scan(&c.name, &c.typ)
		return c, err
	})
}

// size is what all rows take, in bytes.
func (c *captured) size() (sum int) {
	for _, r := range c.rows {
		sum += r.size
	}
	return sum
}

func (c *captured) String() string {
	list := make([]string, len(c.rows))
	for i, r := range c.rows {
		list[i] = r.table + " " + strconv.Itoa(r.size)
	}
	return strings.Join(list, ", ")
}

// expressions stand for what differs from order to order.
type expressions struct {
	order, card, request, consumer, key string // as text
	now                                 string
	production, encrypted, hash         string // "" means the captured ones
}

// insert writes an INSERT of the row, with expressions for what differs.
func (c *captured) insert(r row, e expressions) string {
	names, values := make([]string, len(r.columns)), make([]string, len(r.columns))
	for i, col := range r.columns {
		names[i], values[i] = quote(col.name), c.expression(col, e)
	}
	return "INSERT INTO " + quote(r.table) + " (" + strings.Join(names, ", ") + ") VALUES (" + strings.Join(values, ", ") + ")"
}

func (c *captured) expression(col column, e expressions) string {
	if col.value == nil {
		return "NULL"
	}
	switch {
	case col.name == "production" && e.production != "":
		return e.production
	case col.name == "encrypted_data" && e.encrypted != "":
		return e.encrypted
	case col.name == "content_hash" && e.hash != "":
		return e.hash
	case col.typ == "timestamp with time zone":
		return e.now
	}
	for _, id := range []struct{ value, expression string }{
		{c.orderID, e.order}, {string(c.ids.card[:]), e.card}, {string(c.ids.request[:]), e.request},
		{string(c.ids.consumer[:]), e.consumer}, {string(c.ids.key[:]), e.key},
	} {
		switch *col.value {
		case id.value:
			return "(" + id.expression + ")::" + col.typ
		case "{" + id.value + "}": // a list of one
			return "ARRAY[" + id.expression + "]::" + col.typ
		}
	}
	value := literal(*col.value)
	if strings.Contains(value, "||") {
		value = "(" + value + ")"
	}
	return value + "::" + col.typ
}

// literal is a string constant of SQL that pgbench does not mistake for one with
// variables of its own (:name).
func literal(s string) string {
	return "'" + variable.ReplaceAllString(strings.ReplaceAll(s, "'", "''"), "' || ':' || '$1") + "'"
}

var variable = regexp.MustCompile(`:(\w)`)

// costly are the statements that took most of PostgreSQL's time since they were
// last forgotten.
func (d *database) costly(ctx context.Context) ([]string, error) {
	if !d.statements {
		return nil, nil
	}
	rows, err := d.conn.Query(ctx, `
		SELECT format('%s %% of the time, %s calls of %s ms, %s rows: %s', round(100 * s.total_exec_time / sum(s.total_exec_time) OVER ()), s.calls,
			round(s.mean_exec_time::numeric, 3), s.rows, left(regexp_replace(trim(s.query), '\s+', ' ', 'g'), 160))
		FROM pg_stat_statements s JOIN pg_database b ON b.oid = s.dbid AND b.datname = current_database()
		ORDER BY s.total_exec_time DESC LIMIT 12`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (d *database) forgetStatements(ctx context.Context) error {
	if !d.statements {
		return nil
	}
	_, err := d.conn.Exec(ctx, "SELECT pg_stat_statements_reset()")
	return err
}
