package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/pgrun"
)

// pgbench writes the rows of orders as fast as the server takes them from one
// client per connection: the ceiling for one order per transaction.
type pgbench struct {
	binary, url string
	dir         string
	rows        *captured
}

var errNoPgbench = errors.New("there is no pgbench beside PostgreSQL's other binaries, nor in PATH")

func newPgbench(ctx context.Context, d *database, dir string, rows *captured) (*pgbench, error) {
	binDir, err := pgrun.Find(ctx)
	if err != nil {
		return nil, err
	}
	p := &pgbench{binary: filepath.Join(binDir, "pgbench"), url: d.url(), dir: dir, rows: rows}
	if _, err := os.Stat(p.binary); err != nil {
		if p.binary, err = exec.LookPath("pgbench"); err != nil {
			return nil, errNoPgbench
		}
	}
	for _, pipeline := range []bool{false, true} {
		if err := os.WriteFile(p.script(pipeline), []byte(script(rows, pipeline)), 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pgbench) script(pipeline bool) string {
	if pipeline {
		return filepath.Join(p.dir, "pipeline.sql")
	}
	return filepath.Join(p.dir, "statements.sql")
}

// script writes one order per transaction, with ids like those of the service:
// orders in the order of time, cards and requests in none.
func script(c *captured, pipeline bool) string {
	e := expressions{
		order: `lpad(:id::text, 32, '0')`, card: `md5(:id::text || 'card')`, request: `md5(:id::text || 'request')`,
		consumer: `md5(:id::text || 'consumer')`, key: `md5(:id::text || 'key')`, now: "now()",
	}
	var b strings.Builder
	b.WriteString("\\set n :n + 1\n\\set id :n * 1000 + :client_id\n")
	if pipeline {
		b.WriteString("\\startpipeline\n")
	}
	b.WriteString("BEGIN;\n")
	for _, r := range c.rows {
		b.WriteString(c.insert(r, e) + ";\n")
	}
	b.WriteString("COMMIT;\n")
	if pipeline {
		b.WriteString("\\endpipeline\n")
	}
	return b.String()
}

// running is a pgbench at work.
type running struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// start starts pgbench and returns when all its clients are connected. Its own
// figures are not used: connecting hundreds of clients takes seconds that it counts.
func (p *pgbench) start(ctx context.Context, conn *pgx.Conn, clients int, pipeline bool) (*running, error) {
	return p.startScript(ctx, conn, clients, p.script(pipeline), 1000)
}

// startScript is start for a script, whose n begins after the given one.
func (p *pgbench) startScript(ctx context.Context, conn *pgx.Conn, clients int, script string, n int) (_ *running, err error) {
	r := &running{}
	const longer = 3600 // seconds; stop ends it
	r.cmd = exec.CommandContext(ctx, p.binary, "-n", "-M", "prepared", "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(2, clients)),
		"-T", strconv.Itoa(longer), "-D", "n="+strconv.Itoa(n), "-f", script, p.url)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting pgbench: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop(ctx, conn))
		}
	}()
	return r, awaitClients(ctx, conn, clients)
}

// stop ends pgbench and returns when its sessions are gone.
func (r *running) stop(ctx context.Context, conn *pgx.Conn) error {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // it was killed
	if out := strings.TrimSpace(r.out.String()); strings.Contains(out, "ERROR") {
		return fmt.Errorf("pgbench: %s", out)
	}
	return awaitClients(ctx, conn, 0)
}

func awaitClients(ctx context.Context, conn *pgx.Conn, want int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("pgbench's connections did not come or go"))
	defer cancel()
	for {
		var n int
		err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'`).Scan(&n)
		if err != nil || n == want {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}
