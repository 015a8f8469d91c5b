package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/pgrun"
)

// database is a PostgreSQL that comes back at the same place after each stop.
type database struct {
	cfg pgrun.Config

	mu     sync.Mutex // held while it is restarted
	server *pgrun.Server
}

func startDatabase(ctx context.Context, dir string) (*database, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	d := &database{cfg: pgrun.Config{
		Dir: filepath.Join(dir, "postgres"), Port: port, Fsync: true, MaxConnections: 300,
		// Soon enough to happen in a run.
		Settings: map[string]string{"checkpoint_timeout": "30s"},
	}}
	d.server, err = pgrun.Start(ctx, d.cfg)
	return d, err
}

func (d *database) address() string { return "127.0.0.1:" + strconv.Itoa(d.cfg.Port) }

// restart ends the server, in order or as in a crash, and starts it again.
func (d *database) restart(ctx context.Context, how pgrun.Shutdown, away time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.server.Halt(how); err != nil {
		return err
	}
	sleep(ctx, away)
	// The run goes on, and ends, with a server.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return d.server.Resume(ctx)
}

func (d *database) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.server.Stop()
}

// count runs a query that counts and says what, on a connection of its own.
func (d *database) count(ctx context.Context, query string) (n int, what string, err error) {
	d.mu.Lock()
	url := d.server.SocketURL("")
	d.mu.Unlock()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var text *string
	if err := conn.QueryRow(ctx, query).Scan(&n, &text); err != nil {
		return 0, "", fmt.Errorf("counting: %w", err)
	}
	if text != nil {
		what = *text
	}
	return n, what, nil
}
