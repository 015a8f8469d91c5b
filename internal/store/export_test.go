package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// CommitTogether stores orders as one group and returns what each caller is told.
func (s *Store) CommitTogether(ctx context.Context, list []Acceptance) (orders []*Accepted, errs []error) {
	var group []*entry
	for _, a := range list {
		e, err := s.newEntry(a)
		if err != nil {
			panic(err)
		}
		e.done = make(chan error, 1)
		group = append(group, e)
	}
	s.commitGroup(group)
	for _, e := range group {
		err := <-e.done
		var a *Accepted
		if err == nil {
			a, err = s.accepted(ctx, e)
		}
		orders, errs = append(orders, a), append(errs, err)
	}
	return orders, errs
}

// ListenWith is Listen that pings often and gives up soon.
func (s *Store) ListenWith(ctx context.Context, url string, ping, timeout, retry time.Duration, wake func(lane string), changed func()) {
	l := &listener{store: s, url: url, wake: wake, changed: changed, pingEvery: ping, pingTimeout: timeout, retryMax: retry}
	l.run(ctx)
}

// SawFurther makes the store remember that the database's log was further on.
func (s *Store) SawFurther() {
	s.wal.mu.Lock()
	defer s.wal.mu.Unlock()
	s.wal.position += 1 << 40
}

// Pool is for statements beside those of a fixture's own connection.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }
