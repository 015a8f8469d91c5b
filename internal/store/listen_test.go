package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cardorder/internal/pgtest"
	"cardorder/internal/store"
)

// changedLane stands for a lane that was paused or resumed.
const changedLane = "changed"

// hear listens until the test ends and passes on what it hears.
func (f *fixture) hear(st *store.Store, url string, timeout time.Duration) <-chan string {
	f.t.Helper()
	heard := make(chan string, 1000)
	ctx, cancel := context.WithCancel(f.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		st.ListenWith(ctx, url, 50*time.Millisecond, timeout, 50*time.Millisecond, func(lane string) { heard <- lane }, func() { heard <- changedLane })
	})
	f.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return heard
}

// wantHeard waits until all have been heard, in any order.
func (f *fixture) wantHeard(heard <-chan string, want ...string) {
	f.t.Helper()
	deadline := time.After(time.Minute)
	for len(want) > 0 {
		select {
		case lane := <-heard:
			want = slices.DeleteFunc(want, func(w string) bool { return w == lane })
		case <-deadline:
			f.t.Fatalf("%q was not heard", want)
		}
	}
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	f := open(t)
	other := f.traced(nil)
	mine, theirs := f.hear(f.Store, f.url, 10*time.Second), f.hear(other, f.url, 10*time.Second)
	f.wantHeard(mine, "") // something may have been missed before
	f.wantHeard(theirs, "")
	for i := range 500 {
		f.Announce(fmt.Sprint("d1/", i%3))
	}
	f.Announce("d1/last") // many at once are told once, and the last one too
	f.wantHeard(theirs, "d1/0", "d1/1", "d1/2", "d1/last")
	if n := len(theirs); n > 20 {
		t.Errorf("%d wake-ups are left of some hundred announcements", n)
	}
	other.Announce("d1/theirs")
	f.wantHeard(mine, "d1/theirs")
	for len(mine) > 0 {
		if lane := <-mine; strings.HasPrefix(lane, "d1/l") {
			t.Error("a process hears itself")
		}
	}
	// What a person does with a lane is felt everywhere, here too.
	if _, err := f.PauseLane(t.Context(), "d1/paused", "ada", "why"); err != nil {
		t.Fatal(err)
	}
	f.wantHeard(mine, changedLane)
	f.wantHeard(mine, "d1/paused")
	f.wantHeard(theirs, changedLane)
	f.wantHeard(theirs, "d1/paused")
	if _, err := f.ResumeLane(t.Context(), "d1/paused", "ada"); err != nil {
		t.Fatal(err)
	}
	f.wantHeard(mine, changedLane)
	f.wantHeard(mine, "d1/paused")
	f.wantHeard(theirs, changedLane)
	f.wantHeard(theirs, "d1/paused")
}

func TestListenerIsCut(t *testing.T) {
	t.Parallel()
	f := open(t)
	other := f.traced(nil)
	heard := f.hear(f.Store, f.url, 10*time.Second)
	f.wantHeard(heard, "")
	for range 3 {
		f.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'cardorder-listener'`)
		f.wantHeard(heard, "")
		other.Announce(lane)
		f.wantHeard(heard, lane)
	}
}

// Where notifications do not come through, the log says so once, and everything is
// looked at again with every new try. A NOTIFY stays within its database: the listener
// of another one is as deaf as one behind a PgBouncer.
func TestDeafListener(t *testing.T) {
	t.Parallel()
	f := open(t)
	var log lockedBuilder
	st := f.with(store.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	heard := f.hear(st, pgtest.New(t), 50*time.Millisecond)
	for range 4 {
		f.wantHeard(heard, "")
	}
	if n := strings.Count(log.String(), "are not heard"); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, log.String())
	}
}

type lockedBuilder struct {
	mu sync.Mutex
	strings.Builder
}

func (b *lockedBuilder) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Builder.Write(p)
}

func (b *lockedBuilder) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Builder.String()
}
