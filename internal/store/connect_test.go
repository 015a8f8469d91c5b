package store_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/pgtest"
	"cardorder/internal/store"
)

// fails makes every change of a state fail with a SQLSTATE.
func (f *fixture) fails(code string) {
	f.t.Helper()
	f.exec(`CREATE OR REPLACE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION 'trouble' USING ERRCODE = '` + code + `'; END $$`)
	f.exec(`CREATE OR REPLACE TRIGGER trouble BEFORE UPDATE ON order_state EXECUTE FUNCTION trouble()`)
}

// A connection that is closed already is as bad as one that is being closed: the
// transaction that finds out is to be repeated, not given up.
func TestClosedConnectionIsAway(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), pgtest.NewEmpty(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT 1`); err == nil || !store.Away(err) {
		t.Errorf("error %v is not seen as the database being away", err)
	}
}

// A database that answers but cannot write says so to whoever asks whether all is well.
func TestPingTellsOfTrouble(t *testing.T) {
	t.Parallel()
	for code, told := range map[string]bool{"53100": true, "58030": true, "55P03": false, "57014": false} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			f := open(t)
			f.accept("card", "request")
			c := taken(f.claim(1, time.Minute)[0], "operation")
			f.fails(code)
			if err := f.Complete(t.Context(), []store.Completion{c}); err == nil || !store.Unavailable(err) {
				t.Errorf("error %v is not seen as passing", err)
			}
			if err := f.Ping(t.Context()); (err != nil) != told || told && !strings.Contains(err.Error(), code) {
				t.Errorf("asked whether all is well: %v", err)
			}
		})
	}
}

func TestPingTellsOfAReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	f := open(t)
	if err := f.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`)
	// The connections that there are may write on; new ones may not.
	f.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := f.Ping(ctx)
		if err != nil && strings.Contains(err.Error(), "read only") {
			if !store.Away(err) {
				t.Errorf("error %v is not seen as the database being away", err)
			}
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the database is read-only, and asked about it says %v", err)
		}
	}
}

// The database going away while notifications are applied is not the fault of the one
// whose turn it is: it is not put off.
func TestSweepGoesOnAfterAnOutage(t *testing.T) {
	t.Parallel()
	f := open(t)
	o := f.accept("card", "request")
	f.complete(taken(f.claim(1, time.Minute)[0], "operation"))
	n := notification(1, "operation", "CARD_PROD_READY")
	f.fails("55P03")
	f.receive(n)
	f.fails("57P01")
	f.exec(`UPDATE notifications SET next_try_at = now()`)
	if _, _, err := f.Sweep(t.Context(), nil, func(string, []byte, string) store.Notification { return n }); err == nil || !store.Away(err) {
		t.Fatalf("sweeping: %v", err)
	}
	f.exec(`DROP TRIGGER trouble ON order_state`)
	f.sweep(n)
	if got := f.order(o.ID).State; got.Status != "READY" {
		t.Errorf("the order is %s", got.Status)
	}
}
