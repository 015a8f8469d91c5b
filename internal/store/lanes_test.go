package store_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/store"
)

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	f := open(t)
	other := f.traced(nil)
	if lanes, err := other.Lanes(t.Context()); err != nil || len(lanes) != 0 {
		t.Fatalf("at first: %v, %v", lanes, err)
	}
	paused, err := f.PauseLane(t.Context(), lane, "ada", "a certificate is changed")
	if err != nil || paused.PausedAt.IsZero() || paused.PausedBy != "ada" || paused.PauseReason != "a certificate is changed" || paused.Resumes != 0 {
		t.Fatalf("paused: %+v, %v", paused, err)
	}
	again, err := other.PauseLane(t.Context(), lane, "bob", "another reason")
	if err != nil || again != paused {
		t.Errorf("paused twice: %+v, %v; want %+v", again, err, paused)
	}
	if lanes, err := other.Lanes(t.Context()); err != nil || lanes[lane] != paused {
		t.Errorf("another replica sees %+v, %v", lanes, err)
	}
	resumed, err := other.ResumeLane(t.Context(), lane, "bob")
	if want := (store.LaneState{Lane: lane, Resumes: 1}); err != nil || resumed != want {
		t.Errorf("resumed: %+v, %v; want %+v", resumed, err, want)
	}
	if resumed, err = f.ResumeLane(t.Context(), "d1/never-paused", "bob"); err != nil || resumed.Resumes != 1 {
		t.Errorf("resumed, never paused: %+v, %v", resumed, err)
	}
}

// A resume tries a stopped lane at once, and does not end the stop: only an order that
// D1 accepts does.
func TestResumeOfAStoppedLane(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.exec(`INSERT INTO lanes (lane, stopped_at, stop_reason, probe_at) VALUES ($1, now(), 'refused', now() + interval '1 min')`, lane)
	resumed, err := f.ResumeLane(t.Context(), lane, "ada")
	if err != nil || resumed.StoppedAt.IsZero() || resumed.StopReason != "refused" {
		t.Errorf("resumed: %+v, %v", resumed, err)
	}
	if !value[bool](f, `SELECT probe_at <= now() FROM lanes`) {
		t.Error("the next probe is not due")
	}
}

func TestReplicas(t *testing.T) {
	t.Parallel()
	f := open(t)
	ids := []uuid.UUID{uuid.New(), uuid.New(), uuid.New()}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	beat := func(i int) store.Fleet {
		t.Helper()
		fleet, err := f.Beat(t.Context(), store.Replica{
			ID: ids[i], Host: "host", Health: map[string]json.RawMessage{lane: json.RawMessage(`{"inFlight": 7}`)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return fleet
	}
	want := func(i, live, rank int) {
		t.Helper()
		if fleet := beat(i); fleet.Live != live || fleet.Rank != rank || fleet.Now.IsZero() {
			t.Errorf("replica %d: %+v; want %d live, rank %d", i, fleet, live, rank)
		}
	}
	want(1, 1, 0)
	want(2, 2, 1)
	want(0, 3, 0)
	want(1, 3, 1)
	// One that is silent no longer counts, and counts again when it goes on.
	f.exec(`UPDATE replicas SET seen_at = now() - interval '11 s' WHERE id = $1`, ids[0])
	want(1, 2, 0)
	want(0, 3, 0)
	if err := f.Depart(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	want(2, 2, 1)
	f.exec(`UPDATE replicas SET seen_at = now() - interval '2 h' WHERE id = $1`, ids[1])
	want(2, 1, 0)
	if n := value[int](f, `SELECT count(*) FROM replicas`); n != 1 {
		t.Errorf("%d rows are left, want 1", n)
	}
	list, err := f.Replicas(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != ids[2] || list[0].Host != "host" ||
		string(list[0].Health[lane]) != `{"inFlight": 7}` || list[0].SeenAt.Before(list[0].StartedAt) {
		t.Errorf("replicas %+v, %v", list, err)
	}
	if _, err := f.PauseLane(t.Context(), lane, "ada", "why"); err != nil {
		t.Fatal(err)
	}
	if fleet := beat(2); fleet.Lanes[lane].PausedBy != "ada" {
		t.Errorf("a heartbeat does not tell of a pause: %+v", fleet)
	}
	if _, err := f.Beat(t.Context(), store.Replica{ID: ids[2], Host: "host"}); err != nil {
		t.Errorf("without health: %v", err)
	}
}

// The shares of a limit add up to it, whatever the number of replicas.
func TestShare(t *testing.T) {
	t.Parallel()
	for live := 1; live <= 20; live++ {
		for _, limit := range []int{0, 1, 7, 16, 100} {
			sum, least, most := 0, limit, 0
			for rank := range live {
				share := store.Fleet{Live: live, Rank: rank}.Share(limit)
				sum, least, most = sum+share, min(least, share), max(most, share)
			}
			if sum != limit || most-least > 1 {
				t.Errorf("%d among %d: the sum is %d, from %d to %d", limit, live, sum, least, most)
			}
		}
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	f := open(t)
	for i, state := range []string{
		"run_at = now() + interval '1 h'", "maybe_sent_at = now(), class = 2", "refused_at = now()", "run_at = 'infinity'", "tries = 1",
	} {
		id := f.accept("card-"+string(rune('a'+i)), "r-"+string(rune('a'+i))).ID
		f.exec(`UPDATE outbox SET `+state+` WHERE order_id = $1`, id)
	}
	tx, err := f.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM orders`); err != nil {
		t.Fatal(err)
	}
	stats, err := f.traced(nil).Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(stats.Lanes, func(a, b store.LaneStats) int { return int(a.Class) - int(b.Class) })
	for i := range stats.Lanes {
		l := &stats.Lanes[i]
		if l.Age <= 0 || l.Oldest <= 0 {
			t.Errorf("no age: %+v", l)
		}
		l.Age, l.Oldest = 0, 0
	}
	if want := []store.LaneStats{
		{Lane: lane, Class: store.ClassSingle, Messages: 4, Due: 2, Refused: 1, GivenUp: 1},
		{Lane: lane, Class: store.ClassQuestion, Messages: 1, Due: 1, Unknown: 1},
	}; !slices.Equal(stats.Lanes, want) {
		t.Errorf("lanes %+v, want %+v", stats.Lanes, want)
	}
	if stats.OldestSnapshot <= 0 || stats.OldestSnapshot > time.Hour {
		t.Errorf("the oldest snapshot is %s old", stats.OldestSnapshot)
	}
	if n := stats.Open[store.IssuerStatus{IssuerID: issuer, Status: "ACCEPTED"}]; n != 5 {
		t.Errorf("%d open orders, want 5", n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// An order that waits for an earlier one of its card raises no alarm that nothing is sent.
func TestStatsOfAnOrderBehindAnother(t *testing.T) {
	t.Parallel()
	f := open(t)
	first, second := f.accept("card", "r1").ID, f.accept("other", "r2").ID
	f.exec(`UPDATE outbox SET card_id = 'card', run_at = now() - interval '1 h' WHERE order_id = $1`, second)
	f.exec(`UPDATE outbox SET class = 2, maybe_sent_at = now(), run_at = now() + interval '1 h' WHERE order_id = $1`, first)
	if claimed := f.claim(2, time.Minute); len(claimed) != 0 {
		t.Fatalf("claimed %+v", claimed)
	}
	stats, err := f.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range stats.Lanes {
		if l.Oldest != 0 {
			t.Errorf("an order that could be sent has waited for %s: %+v", l.Oldest, l)
		}
	}
	backlog, err := f.Backlog(t.Context(), lane)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range backlog.Classes {
		if c.OldestDue != 0 {
			t.Errorf("an order that could be sent has waited for %s: %+v", c.OldestDue, c)
		}
	}
}

// A vacuum keeps no dead rows, however long it takes.
func TestStatsDuringAVacuum(t *testing.T) {
	t.Parallel()
	f := open(t)
	f.exec(`CREATE TABLE large AS SELECT repeat('x', 200) AS text FROM generate_series(1, 20000)`)
	f.exec(`DELETE FROM large`)
	conn, err := pgx.Connect(t.Context(), f.url)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), `SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1`)
		if err == nil {
			_, err = conn.Exec(t.Context(), `VACUUM large`)
		}
		ended <- err
	}()
	const age = `SELECT coalesce(max(clock_timestamp() - xact_start), '0') FROM pg_stat_activity
		WHERE backend_xmin IS NOT NULL AND pid IN (SELECT pid FROM pg_stat_progress_vacuum WHERE datname = current_database())`
	var vacuum time.Duration
	for vacuum < time.Second/2 { // no snapshot of a look at it is as old
		select {
		case err := <-ended:
			t.Fatalf("the vacuum was not seen: %v", err)
		default:
		}
		vacuum = value[time.Duration](f, age)
	}
	stats, err := f.traced(nil).Stats(t.Context())
	if err != nil || stats.OldestSnapshot >= vacuum {
		t.Errorf("the oldest snapshot is %s old, the vacuum %s; %v", stats.OldestSnapshot, vacuum, err)
	}
	f.exec(`SELECT pg_terminate_backend($1)`, conn.PgConn().PID())
	<-ended
}
