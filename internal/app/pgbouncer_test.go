package app_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"testing"

	"cardorder/client"
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
		cfg.Database.DirectURL = cfg.Database.URL
		cfg.Database.URL = config.NewSecret(u.String())
	}
}

// Behind a PgBouncer in transaction mode everything works but the listener: the other
// replica finds by polling what it is not told of. With a direct URL it hears.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	const deaf, hears = "announcements of other replicas are not heard", "cardorder-listener"
	for name, direct := range map[string]bool{"polling": false, "with a direct URL": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pg := startPostgres(t, pgrun.Config{})
			bouncer := pgbouncer(t, pg, map[string]string{"default_pool_size": "4"})
			b := newBankOn(t, pg.URL(""), unforgivingAndEmpty(), bounced(bouncer), func(cfg *config.Config) {
				if !direct {
					cfg.Database.DirectURL = cfg.Database.URL
				}
			})
			if !b.logged("statement_timeout, lock_timeout or idle_in_transaction_session_timeout is 0") {
				t.Error("missing timeouts were not warned of")
			}
			b.replica()
			l := b.load()
			l.more(15)
			b.everything()
			l.more(15)
			l.settled()
			b.everyAnswerKept()
			if direct {
				b.eventually("it listens", func() bool {
					return query[int](b, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, hears) == 2 // both replicas
				})
				return
			}
			b.eventually("the log tells that nothing is heard", func() bool { return b.logged(deaf) })
			b.await(b.place(b.thales("polled")), "SHIPPED")
		})
	}
}

// everything uses, once, what the load does not.
func (b *bank) everything() {
	b.t.Helper()
	ctx, c := b.t.Context(), b.client()
	var rows bytes.Buffer
	for i := range 20 {
		rows.Write(mustJSON(b.t, b.thales(fmt.Sprintf("row-%d", i))))
		rows.WriteByte('\n')
	}
	check := func(doing string, err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatalf("%s: %v", doing, err)
		}
	}
	up, err := c.UploadBatch(ctx, client.Upload{
		IdempotencyKey: "a-batch", Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(rows.Bytes())), nil },
	})
	check("uploading", err)
	_, err = c.HoldBatch(ctx, up.ID)
	check("holding", err)
	_, err = c.ReleaseBatch(ctx, up.ID)
	check("releasing", err)
	_, err = c.Batches(ctx, client.BatchFilter{})
	check("listing batches", err)
	for _, err := range c.BatchResults(ctx, up.ID, "") {
		check("reading results", err)
	}
	page, err := c.Orders(ctx, client.OrderFilter{BatchID: up.ID})
	check("listing the batch's orders", err)
	id := page.Data[0].ID
	_, err = c.Timeline(ctx, id)
	check("reading a timeline", err)
	b.within(2*patience, "the order was sent", func() bool { return b.get(id).view.OperationID != "" })
	for _, call := range []struct{ path, content string }{
		{orders + "/" + id + "/refresh", ""}, {lanes + "/d1/pause", `{"reason": "a test"}`}, {lanes + "/d1/resume", ""},
	} {
		if a := b.action(call.path, call.content, nil); a.status > 299 {
			b.t.Fatalf("%s: %d %s", call.path, a.status, a.text)
		}
	}
	for _, f := range []client.OrderFilter{{}, {CardID: "card-row-1"}, {Statuses: []client.Status{client.StatusShipped}}, {Attention: true}} {
		_, err = c.Orders(ctx, f)
		check("listing orders", err)
	}
}
