package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"cardorder/migrations"
)

// Migrate brings the schema up to date. Several processes may call it at once:
// a session lock lets one work and the others find the work done. url must
// reach Postgres itself, not a PgBouncer in transaction mode.
func Migrate(ctx context.Context, url string) error {
	return withGoose(url, true, func(p *goose.Provider) error {
		if _, err := p.Up(ctx); err != nil {
			return fmt.Errorf("migrating the schema: %w", err)
		}
		return nil
	})
}

// Migration is one step of the schema and whether it was applied.
type Migration struct {
	Version int64
	Name    string
	Applied bool
}

// Migrations lists every migration this binary knows.
func Migrations(ctx context.Context, url string) ([]Migration, error) {
	var list []Migration
	err := withGoose(url, false, func(p *goose.Provider) error {
		status, err := p.Status(ctx)
		if err != nil {
			return fmt.Errorf("reading the schema's version: %w", err)
		}
		for _, m := range status {
			list = append(list, Migration{m.Source.Version, m.Source.Path, m.State == goose.StateApplied})
		}
		return nil
	})
	return list, err
}

func withGoose(url string, locked bool, f func(*goose.Provider) error) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return errors.New("parsing the database URL: it is not a PostgreSQL URL")
	}
	findPrimary(&cfg.Config)
	// A migration waits for a lock only briefly, rather than making every
	// request queue up behind it; the next try continues where it stopped.
	cfg.RuntimeParams["lock_timeout"] = "5s"
	db := stdlib.OpenDB(*cfg)
	defer func() { _ = db.Close() }()
	var opts []goose.ProviderOption
	if locked {
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return fmt.Errorf("making the migration lock: %w", err)
		}
		opts = append(opts, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS, opts...)
	if err != nil {
		return fmt.Errorf("loading the migrations: %w", err)
	}
	return f(p)
}

// SchemaCurrent tells whether the database has every migration of this binary.
// It may have newer ones: during a roll-out the old binary works on the new schema.
func (s *Store) SchemaCurrent(ctx context.Context) (bool, error) {
	want, err := newestMigration()
	if err != nil {
		return false, err
	}
	var exists bool
	if err := s.pool.QueryRow(ctx, `SELECT to_regclass('goose_db_version') IS NOT NULL`).Scan(&exists); err != nil {
		return false, fmt.Errorf("looking for the schema: %w", err)
	}
	if !exists {
		return false, nil
	}
	var have int64
	err = s.pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&have)
	if err != nil {
		return false, fmt.Errorf("reading the schema's version: %w", err)
	}
	return have >= want, nil
}

func newestMigration() (int64, error) {
	names, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil {
		return 0, fmt.Errorf("listing the migrations: %w", err)
	}
	var newest int64
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return 0, fmt.Errorf("numbering the migrations: %w", err)
		}
		newest = max(newest, version)
	}
	return newest, nil
}
