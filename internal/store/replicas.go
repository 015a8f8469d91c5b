package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Replica is one live process.
type Replica struct {
	ID        uuid.UUID
	Host      string
	StartedAt time.Time // its first heartbeat; set here
	SeenAt    time.Time // its last one; set here
	// Health is what its lanes say of themselves, by lane, for people: see
	// outbox.Health.
	Health map[string]json.RawMessage
}

// Fleet is what a heartbeat learns.
type Fleet struct {
	Live int       // processes, this one included; at least 1
	Rank int       // of this one among them, from 0
	Now  time.Time // by the database's clock
	// Lanes by name, as of now.
	Lanes map[string]LaneState
}

// Share is the part of a lane's limit that falls to this process.
func (f Fleet) Share(limit int) int {
	share := limit / f.Live
	if f.Rank < limit%f.Live {
		share++
	}
	return share
}

// live says in SQL that a process is: it was seen a short time ago. Until then the
// others leave it its share of the limits.
const live = `seen_at > now() - interval '10 s'`

// Beat says that a process lives, and tells it about the others: one round trip. Rows
// of processes that died long ago go at the same time.
func (s *Store) Beat(ctx context.Context, r Replica) (Fleet, error) {
	health := r.Health
	if health == nil {
		health = map[string]json.RawMessage{}
	}
	var f Fleet
	var b pgx.Batch
	// Written first: a process that was frozen finds its row again, or a new one.
	exec(&b, `
		INSERT INTO replicas AS r (id, host, health) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET seen_at = now(), host = EXCLUDED.host, health = EXCLUDED.health`, r.ID, r.Host, health)
	exec(&b, `
		DELETE FROM replicas WHERE id IN (SELECT id FROM replicas
			WHERE seen_at < now() - interval '1 h' FOR UPDATE SKIP LOCKED)`)
	b.Queue(`SELECT count(*), count(*) FILTER (WHERE id < $1), now() FROM replicas WHERE `+live, r.ID).QueryRow(func(row pgx.Row) error {
		return row.Scan(&f.Live, &f.Rank, &f.Now)
	})
	b.Queue(selectLanes).Query(func(rows pgx.Rows) (err error) {
		f.Lanes, err = collectLanes(rows)
		return err
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return Fleet{}, fmt.Errorf("sending a heartbeat: %w", err)
	}
	return f, nil
}

// Depart takes a process that ends off the list at once.
func (s *Store) Depart(ctx context.Context, id uuid.UUID) error {
	if _, err := s.pool.Exec(ctx, `DELETE FROM replicas WHERE id = $1`, id); err != nil {
		return fmt.Errorf("taking a replica off the list: %w", err)
	}
	return nil
}

// Replicas lists the live processes by id.
func (s *Store) Replicas(ctx context.Context) ([]Replica, error) {
	var list []Replica
	rows, err := s.pool.Query(ctx, `SELECT id, host, started_at, seen_at, health FROM replicas WHERE `+live+` ORDER BY id`)
	if err == nil {
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Replica])
	}
	if err != nil {
		return nil, fmt.Errorf("listing replicas: %w", err)
	}
	return list, nil
}
