package store

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Concurrent orders share transactions, for a commit that waits for the disk costs
// more than an order. They never share a fate: an order that cannot be stored takes
// no other with it. So do small calls with notifications.
const (
	// committers is how many groups are stored at once. A lone order finds one idle
	// and does not wait for company; while all are busy, orders gather.
	committers = 3
	// maxGroup bounds a group, so that its rows stay locked only briefly.
	maxGroup = 128
	// groupTimeout bounds the storing of a group.
	groupTimeout = 10 * time.Second
)

// beginGroup begins the transaction of a group. It waits for a lock only briefly: then
// its orders are stored one by one, so that one which has to wait holds up no other.
var beginGroup = pgx.TxOptions{BeginQuery: "BEGIN; SET LOCAL lock_timeout = '250ms'"}

var errClosed = errors.New("the store is closed")

// groups hands what callers want stored to committers, which store what waits at one
// moment together.
type groups[T any] struct {
	entries chan T // unbuffered: what its caller gives up is not in it
	size    func(T) int
	commit  func([]T)
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

// start starts the committers; size says how much of a group's room an entry takes.
func (g *groups[T]) start(size func(T) int, commit func([]T)) {
	g.entries, g.size, g.commit = make(chan T), size, commit
	g.ctx, g.stop = context.WithCancel(context.Background()) //nolint:gosec // end calls it
	for range committers {
		g.running.Go(g.work)
	}
}

func (g *groups[T]) end() {
	g.stop()
	g.running.Wait()
}

// enter has a committer store an entry, with whatever else comes at this moment, and
// waits for its verdict.
func (g *groups[T]) enter(ctx context.Context, e T, done <-chan error) error {
	select {
	case g.entries <- e:
	case <-ctx.Done():
		return ctx.Err()
	case <-g.ctx.Done():
		return errClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *groups[T]) work() {
	for {
		select {
		case first := <-g.entries:
			g.commit(g.gather(first))
		case <-g.ctx.Done():
			return
		}
	}
}

// gather takes all that waits at this moment.
func (g *groups[T]) gather(first T) []T {
	group := []T{first}
	for n := g.size(first); n < maxGroup; {
		select {
		case e := <-g.entries:
			group, n = append(group, e), n+g.size(e)
		default:
			return group
		}
	}
	return group
}

func (s *Store) startCommitters() {
	s.waiters = make(chan struct{}, max(1, s.pool.Config().MaxConns/4))
	s.groups.start(func(*entry) int { return 1 }, s.commitGroup)
	s.calls.start(func(c *call) int { return len(c.list) }, s.receiveGroup)
}

func (s *Store) stopCommitters() {
	s.groups.end()
	s.calls.end()
}

// commit has a committer store an entry.
func (s *Store) commit(ctx context.Context, e *entry) error {
	e.done = make(chan error, 1)
	return s.groups.enter(ctx, e, e.done)
}

// commitGroup stores a group and tells each of its callers. The group's context is
// nobody's: a caller that gives up ends no other's order.
func (s *Store) commitGroup(group []*entry) {
	err := s.store(group, beginGroup)
	if err == nil || Away(err) || len(group) == 1 && !isLockTimeout(err) {
		for _, e := range group {
			e.done <- err
		}
		return
	}
	// One of them cannot be stored, or has to wait: each is tried alone, beside the
	// groups that come.
	for _, e := range group {
		s.groups.running.Go(func() { e.done <- s.storeAlone(e) })
	}
}

// storeAlone stores one entry. Few at a time may wait long for a lock, so that all
// other work finds connections.
func (s *Store) storeAlone(e *entry) error {
	err := s.store([]*entry{e}, beginGroup)
	if !isLockTimeout(err) {
		return err
	}
	patience := time.NewTimer(groupTimeout)
	defer patience.Stop()
	select {
	case s.waiters <- struct{}{}:
		defer func() { <-s.waiters }()
		return s.store([]*entry{e}, pgx.TxOptions{})
	case <-patience.C:
		return err
	case <-s.groups.ctx.Done():
		return err
	}
}

// store stores entries in one transaction.
func (s *Store) store(entries []*entry, options pgx.TxOptions) error {
	return s.contained(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), groupTimeout)
		defer cancel()
		err := s.inTxWith(ctx, options, func(tx pgx.Tx) error { return s.insert(ctx, tx, entries) })
		if err == nil {
			s.announce(entries)
		}
		return err
	})
}

// contained turns a panic of f, which is a bug, into an error: beside requests it would
// end the process.
func (s *Store) contained(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("panic while storing", "panic", p, "stack", string(debug.Stack()))
			err = errors.New("storing: panic")
		}
	}()
	return f()
}

// announce tells of what a commit made ready.
func (s *Store) announce(entries []*entry) {
	lanes := make(map[string]bool)
	for _, e := range entries {
		if e.verdict != verdictAccepted {
			continue
		}
		if lane := LaneOf(e.IssuerID); !lanes[lane] {
			lanes[lane] = true
			s.cfg.OnReady(lane)
		}
		if len(e.parked) > 0 {
			s.cfg.OnParked(e.parked)
		}
	}
}
