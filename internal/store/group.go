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
// no other with it.
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

// groups hands orders to committers.
type groups struct {
	entries chan *entry // unbuffered: an order whose caller gives up is not in it
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	waiters chan struct{} // orders that wait long for a lock, each with a connection
}

func (s *Store) startCommitters() {
	s.groups.entries = make(chan *entry)
	s.groups.waiters = make(chan struct{}, max(1, s.pool.Config().MaxConns/4))
	s.groups.ctx, s.groups.stop = context.WithCancel(context.Background())
	for range committers {
		s.groups.running.Go(s.commitGroups)
	}
}

func (s *Store) stopCommitters() {
	s.groups.stop()
	s.groups.running.Wait()
}

// commit has a committer store an entry, with whatever else comes at this moment, and
// waits for its verdict.
func (s *Store) commit(ctx context.Context, e *entry) error {
	e.done = make(chan error, 1)
	select {
	case s.groups.entries <- e:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.groups.ctx.Done():
		return errClosed
	}
	select {
	case err := <-e.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) commitGroups() {
	for {
		select {
		case first := <-s.groups.entries:
			s.commitGroup(s.gather(first))
		case <-s.groups.ctx.Done():
			return
		}
	}
}

// gather takes all orders that wait at this moment.
func (s *Store) gather(first *entry) []*entry {
	group := []*entry{first}
	for len(group) < maxGroup {
		select {
		case e := <-s.groups.entries:
			group = append(group, e)
		default:
			return group
		}
	}
	return group
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
	case s.groups.waiters <- struct{}{}:
		defer func() { <-s.groups.waiters }()
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
			s.cfg.Log.Error("panic while storing orders", "panic", p, "stack", string(debug.Stack()))
			err = errors.New("storing orders: panic")
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
