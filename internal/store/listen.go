package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// channel is the one on which processes tell each other that a lane has something to
// send. Announcements only wake: one that gets lost costs the wait until the next poll.
const channel = "cardorder"

// announcement is what is said on the channel: "FROM LANE", or "FROM" alone, by which
// a listener finds out whether it still hears. FROM is empty where a lane's row
// was changed, which the sender is to hear too.
type announcement struct{ from, lane string }

func (a announcement) String() string { return a.from + " " + a.lane }

func readAnnouncement(payload string) announcement {
	from, lane, _ := strings.Cut(payload, " ")
	return announcement{from, lane}
}

// announceEvery bounds how often a process announces. A NOTIFY within the
// transactions that store orders would cost about half of their speed.
const announceEvery = 100 * time.Millisecond

// announcer gathers what is to be announced.
type announcer struct {
	self string // of this process

	mu    sync.Mutex
	lanes map[string]bool
	ready chan struct{} // there are lanes

	stop    context.CancelFunc
	running sync.WaitGroup
}

func (s *Store) startAnnouncer() {
	a := &s.announcer
	a.self, a.lanes, a.ready = uuid.NewString(), make(map[string]bool), make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	a.running.Go(func() { s.announceAll(ctx) })
}

func (s *Store) stopAnnouncer() {
	s.announcer.stop()
	s.announcer.running.Wait()
}

// Announce tells the other replicas, soon and not too often, that a lane has
// something to send. It never blocks.
func (s *Store) Announce(lane string) {
	a := &s.announcer
	a.mu.Lock()
	a.lanes[lane] = true
	a.mu.Unlock()
	select {
	case a.ready <- struct{}{}:
	default:
	}
}

// announceAll announces the first lane at once, and what comes within the pause after
// it at the end of that.
func (s *Store) announceAll(ctx context.Context) {
	a := &s.announcer
	for {
		select {
		case <-a.ready:
		case <-ctx.Done():
			return
		}
		var payloads []string
		a.mu.Lock()
		for lane := range a.lanes {
			payloads = append(payloads, announcement{a.self, lane}.String())
		}
		clear(a.lanes)
		a.mu.Unlock()
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := s.pool.Exec(short, `SELECT pg_notify($1, p) FROM unnest($2::text[]) p`, channel, payloads)
		cancel()
		if err != nil {
			s.cfg.Log.Debug("announcing lanes failed; the other replicas find out by polling", "error", err)
		}
		pause(ctx, announceEvery)
	}
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// listener hears announcements.
type listener struct {
	store   *Store
	url     string
	wake    func(lane string)
	changed func()
	// Every so often an announcement to oneself is sent through the pool, and must be
	// heard within the timeout.
	pingEvery, pingTimeout time.Duration
	retryMax               time.Duration // the longest wait before another try
	deaf                   bool          // it was said that nothing is heard
}

// Listen calls wake for each lane that another replica announced, and with "" when
// announcements may have been missed, and changed when a lane was paused or resumed,
// until ctx ends. url must reach Postgres itself. Where notifications do not come
// through, as behind a PgBouncer in transaction mode, it says so in the log and goes on
// trying: polling finds everything.
func (s *Store) Listen(ctx context.Context, url string, wake func(lane string), changed func()) {
	l := &listener{store: s, url: url, wake: wake, changed: changed, pingEvery: 10 * time.Second, pingTimeout: 5 * time.Second, retryMax: time.Minute}
	l.run(ctx)
}

func (l *listener) run(ctx context.Context) {
	const retryFirst = 100 * time.Millisecond
	retry := retryFirst
	for ctx.Err() == nil {
		heard, err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if heard {
			retry = retryFirst
		}
		if !l.deaf && !heard {
			l.deaf = true
			l.store.cfg.Log.Warn("announcements of other replicas are not heard; messages are found by polling", "error", err)
		}
		pause(ctx, retry/2+rand.N(retry))
		retry = min(2*retry, l.retryMax)
	}
}

var errDeaf = errors.New("an announcement to oneself did not come back: the listener's URL does not reach PostgreSQL itself, or another database")

// session listens on one connection until it breaks. heard tells whether announcements
// came through.
func (l *listener) session(ctx context.Context) (heard bool, err error) {
	conn, err := l.connect(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(short)
	}()
	l.wake("") // what was announced while nobody listened
	self := uuid.NewString()
	pinged := false // and no answer yet
	for deadline := time.Now(); ; {
		wait, cancel := context.WithDeadline(ctx, deadline)
		n, err := conn.WaitForNotification(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return heard, ctx.Err()
		case err == nil:
			a := readAnnouncement(n.Payload)
			switch {
			case a.from == self:
				heard, pinged, deadline = true, false, time.Now().Add(l.pingEvery)
				if l.deaf {
					l.deaf = false
					l.store.cfg.Log.Info("announcements of other replicas are heard")
				}
			case a.lane != "" && a.from == "":
				l.changed()
				l.wake(a.lane)
			case a.lane != "" && a.from != l.store.announcer.self:
				l.wake(a.lane)
			}
		case !pgconn.Timeout(err) || conn.IsClosed():
			return heard, fmt.Errorf("listening: %w", err)
		case pinged:
			return false, errDeaf
		default:
			// A pool that is broken or busy says nothing about this connection.
			pinged = l.ping(ctx, self) == nil
			if deadline = time.Now().Add(l.pingTimeout); !pinged {
				deadline = time.Now().Add(l.pingEvery)
			}
		}
	}
}

func (l *listener) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(l.url)
	if err != nil {
		return nil, errors.New("parsing the listener's URL: it is not a PostgreSQL URL")
	}
	findPrimary(&cfg.Config) // a standby passes nothing on
	cfg.RuntimeParams["application_name"] = "cardorder-listener"
	short, cancel := context.WithTimeout(ctx, l.pingTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(short, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting the listener: %w", err)
	}
	if _, err := conn.Exec(short, "LISTEN "+channel); err != nil {
		_ = conn.Close(short)
		return nil, fmt.Errorf("listening: %w", err)
	}
	return conn, nil
}

func (l *listener) ping(ctx context.Context, self string) error {
	short, cancel := context.WithTimeout(ctx, l.pingTimeout)
	defer cancel()
	_, err := l.store.pool.Exec(short, `SELECT pg_notify($1, $2)`, channel, announcement{from: self}.String())
	return err
}
