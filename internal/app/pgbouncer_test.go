package app_test

import (
	"errors"
	"net/url"
	"testing"

	"cardorder/internal/config"
	"cardorder/internal/pgrun"
)

// pgbouncer runs a PgBouncer in transaction mode as docs/operations.md says, and skips
// where there is none.
func pgbouncer(t *testing.T, pg *pgrun.Server, settings map[string]string) *pgrun.Bouncer {
	t.Helper()
	if settings == nil {
		settings = make(map[string]string)
	}
	settings["ignore_startup_parameters"] = "statement_timeout,lock_timeout,idle_in_transaction_session_timeout,default_transaction_isolation"
	bouncer, err := pgrun.StartBouncer(t.Context(), pg, settings)
	if errors.Is(err, pgrun.ErrNoBouncer) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bouncer.Stop(); err != nil {
			t.Error(err)
		}
	})
	return bouncer
}

// bounced leads the service through a PgBouncer; migrations go straight to PostgreSQL.
func bounced(bouncer *pgrun.Bouncer) func(*config.Config) {
	return func(cfg *config.Config) {
		u, err := url.Parse(bouncer.URL(""))
		if err != nil {
			panic(err) // the test's own URL
		}
		query := u.Query()
		query.Set("default_query_exec_mode", "cache_describe")
		u.RawQuery = query.Encode()
		cfg.Database.MigrateURL = cfg.Database.URL
		cfg.Database.URL = config.NewSecret(u.String())
	}
}

func TestPgBouncer(t *testing.T) {
	t.Parallel()
	pg := startPostgres(t, pgrun.Config{})
	bouncer := pgbouncer(t, pg, map[string]string{"default_pool_size": "4"})
	b := newBankOn(t, pg.URL(""), unforgivingAndEmpty(), bounced(bouncer))
	l := b.load()
	l.more(100)
	l.settled()
	b.everyAnswerKept()
}
