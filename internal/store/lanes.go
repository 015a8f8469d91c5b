package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
)

// LaneState is what holds for a lane on all replicas. The zero value is a lane that
// nobody paused and nothing stopped.
type LaneState struct {
	Lane        string
	PausedAt    time.Time // zero when it is not paused
	PausedBy    string
	PauseReason string
	// StoppedAt is since when nothing but probes is sent: different orders were
	// refused as if the set-up were wrong. Zero when it is not stopped.
	StoppedAt  time.Time
	StopReason string
	ProbeAt    time.Time // when the next order is tried
	// Resumes is how often a person resumed the lane: when it grows, every process
	// gives its breakers another try.
	Resumes int
}

var errTodo = errors.New("not yet")

// PauseLane stops a lane for all replicas until it is resumed: nothing is claimed
// after the commit. Calls under way end. Pausing a paused lane changes nothing.
func (s *Store) PauseLane(ctx context.Context, lane, actor, reason string) (LaneState, error) {
	return LaneState{}, errTodo
}

// ResumeLane ends a pause, makes the next probe of a stopped lane due now, and
// lets every process try its breakers.
func (s *Store) ResumeLane(ctx context.Context, lane, actor string) (LaneState, error) {
	return LaneState{}, errTodo
}

// Lanes returns the state of lanes by name. A lane without a row is not in it.
func (s *Store) Lanes(ctx context.Context) (map[string]LaneState, error) { return nil, errTodo }

// Replica is one live process.
type Replica struct {
	ID        uuid.UUID
	Host      string
	StartedAt time.Time
	SeenAt    time.Time
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

// Beat says that a process lives, and tells it about the others: one round trip.
func (s *Store) Beat(ctx context.Context, r Replica) (Fleet, error) { return Fleet{}, errTodo }

// Depart takes a process that ends off the list at once.
func (s *Store) Depart(ctx context.Context, id uuid.UUID) error { return errTodo }

// Replicas lists the live processes by id.
func (s *Store) Replicas(ctx context.Context) ([]Replica, error) { return nil, errTodo }

// CheckTimeline compares the history of the database with the one remembered. When
// it is another, after a failover or a restore, every message that is not done is
// marked so that D1 is asked before anything is sent: lease is for how long a worker
// may still hold a claim that this database has never heard of.
func (s *Store) CheckTimeline(ctx context.Context, lease time.Duration) (changed bool, err error) {
	return false, errTodo
}

// Announce tells the other replicas, soon and not too often, that a lane has
// something to send. It never blocks.
func (s *Store) Announce(lane string) {}

// Listen calls wake for each lane that another replica announced, and with "" when
// announcements may have been missed, until ctx ends. url must reach Postgres
// itself. Where notifications do not come through, as behind a PgBouncer in
// transaction mode, it says so in the log and goes on trying: polling finds
// everything.
func (s *Store) Listen(ctx context.Context, url string, wake func(lane string)) {}

// Check gives orders whose next check is due a question to D1: at most limit of an
// issuer. It returns how many.
func (s *Store) Check(ctx context.Context, issuer string, limit int) (int, error) { return 0, errTodo }

// Action is what somebody wants done with an order.
type Action struct {
	IssuerID string
	OrderID  uuid.UUID
	Actor    string // the client's name
	Version  int    // that the order must have, else ErrVersion; 0 for any
}

// ErrVersion is returned when an order is not at the version that was asked for.
var ErrVersion = errors.New("the order has another version")

// ErrNotSent is returned by Refresh for an order that D1 has never heard of.
var ErrNotSent = errors.New("the order was not sent yet")

// ErrNotRetryable is returned by Retry for an order that needs no sending.
var ErrNotRetryable = errors.New("the order cannot be sent again")

// Refresh has D1 asked about an order as soon as possible, and returns the order as
// it is before.
func (s *Store) Refresh(ctx context.Context, a Action) (*Order, error) { return nil, errTodo }

// Retry is what Store.Retry needs beside the action.
type Retry struct {
	Action
	EncryptedData     string // replaces the order's when not empty
	DuplicateOverride string // the reason, when another order of the card is in the way
}

// Retry starts the sending of an order anew, with the same issuerRequestId: one that
// was rejected or given up is sent, one whose outcome is unknown is asked about and
// may be sent again. The error is a *ConflictError when another order of the card is
// in the way.
func (s *Store) Retry(ctx context.Context, r Retry) (*Order, error) { return nil, errTodo }
