package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"cardorder/internal/pgrun"
)

// pgbench writes the rows of orders as fast as the server takes them from one
// client per connection: the ceiling for one order per transaction.
type pgbench struct {
	binary, url string
	dir         string
	rows        *captured
}

func newPgbench(ctx context.Context, d *database, dir string, rows *captured) (*pgbench, error) {
	binDir, err := pgrun.Find(ctx)
	if err != nil {
		return nil, err
	}
	p := &pgbench{binary: filepath.Join(binDir, "pgbench"), url: d.url(), dir: dir, rows: rows}
	if _, err := os.Stat(p.binary); err != nil {
		if p.binary, err = exec.LookPath("pgbench"); err != nil {
			return nil, errors.New("there is no pgbench beside PostgreSQL's other binaries, nor in PATH (Debian: apt-get install postgresql)")
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

var (
	tpsPattern     = regexp.MustCompile(`tps = ([0-9.]+)`)
	latencyPattern = regexp.MustCompile(`latency average = ([0-9.]+) ms`)
	countPattern   = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
)

// pgbenchRun is what one run told.
type pgbenchRun struct {
	orders  int
	rate    float64
	latency time.Duration // mean
	cpu     time.Duration // of pgbench itself
}

func (p *pgbench) run(ctx context.Context, clients int, pipeline bool, duration time.Duration) (*pgbenchRun, error) {
	seconds := max(1, int(duration.Round(time.Second).Seconds()))
	cmd := exec.CommandContext(ctx, p.binary, "-n", "-M", "prepared", "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(2, clients)),
		"-T", strconv.Itoa(seconds), "-D", "n=1000", "-f", p.script(pipeline), p.url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	r := &pgbenchRun{cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	for _, f := range []struct {
		pattern *regexp.Regexp
		set     func(float64)
	}{
		{tpsPattern, func(v float64) { r.rate = v }},
		{latencyPattern, func(v float64) { r.latency = time.Duration(v * float64(time.Millisecond)) }},
		{countPattern, func(v float64) { r.orders = int(v) }},
	} {
		match := f.pattern.FindSubmatch(out)
		if match == nil {
			return nil, fmt.Errorf("pgbench answered something else:\n%s", out)
		}
		v, err := strconv.ParseFloat(string(match[1]), 64)
		if err != nil {
			return nil, err
		}
		f.set(v)
	}
	return r, nil
}
