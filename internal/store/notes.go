package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Note is what somebody wrote about an order. It rests sealed: it may name people.
type Note struct {
	ID        uuid.UUID
	Text      string
	Author    string
	CreatedAt time.Time
}

// Format prints the note's id only.
func (n Note) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "{note %s}", n.ID) }

// LogValue logs what Format prints.
func (n Note) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(n)) }

// NewNote is a note to be added; its author is the actor.
type NewNote struct {
	Action
	Key  string // "" when the request carried none: by it a repeated request is recognised
	Text string
}

// noteDetail is what the timeline tells of a note beside its text.
type noteDetail struct {
	NoteID    uuid.UUID       `json:"noteId"`
	Attention order.Attention `json:"attention,omitempty"` // which it clears
}

// errNoteThere ends a transaction whose note was added by an earlier request.
var errNoteThere = errors.New("the note is there already")

// AddNote adds a note to an order. A request that comes again leads to its note again. The
// error is a *ConflictError when the key belongs to another note of the order, ErrNotFound
// or ErrVersion when there is no such order.
func (s *Store) AddNote(ctx context.Context, n NewNote) (note *Note, replayed bool, err error) {
	note = &Note{ID: s.noteID(n), Text: n.Text, Author: n.Actor}
	if n.Key != "" {
		if first, err := s.firstNote(ctx, n, note.ID); err != nil || first != nil {
			return first, first != nil, err
		}
	}
	_, err = s.act(ctx, n.Action, func(tx pgx.Tx, _ *pgx.Batch, w *advances, o *lockedOrder) error {
		if err := s.insertNote(ctx, tx, o.orderKey, note); err != nil {
			return err
		}
		return noted(w, o, note, EventNoteAdded, "", order.Details{})
	})
	if errors.Is(err, errNoteThere) { // at this very moment
		note, err = s.firstNote(ctx, n, note.ID)
		return note, true, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("adding a note: %w", err)
	}
	return note, false, nil
}

// noteID is what a request's note is called: by its key, if it has one.
func (s *Store) noteID(n NewNote) uuid.UUID {
	if n.Key == "" {
		return uuid.New()
	}
	sum := s.cfg.HashKeys.sum(fmt.Appendf(nil, "note\x00%s\x00%s\x00%s\x00%s", n.IssuerID, n.OrderID, n.Actor, n.Key))
	id := uuid.UUID(sum[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8: of our own making (RFC 9562)
	return id
}

// firstNote returns the note that a request with the same key added, nil when there is none.
func (s *Store) firstNote(ctx context.Context, n NewNote, id uuid.UUID) (*Note, error) {
	note := Note{ID: id}
	var body []byte
	err := s.pool.QueryRow(ctx, `SELECT body, author, created_at FROM order_notes WHERE issuer_id = $1 AND order_id = $2 AND id = $3`,
		n.IssuerID, n.OrderID, id).Scan(&body, &note.Author, &note.CreatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, fmt.Errorf("reading a note: %w", err)
	}
	if note.Text, err = s.openNote(n.IssuerID, n.OrderID, id, body); err != nil {
		return nil, err
	}
	if note.Text != n.Text {
		return nil, &ConflictError{ContentDiffers, n.OrderID}
	}
	return &note, nil
}

func (s *Store) openNote(issuer string, orderID, id uuid.UUID, body []byte) (string, error) {
	text, err := s.cfg.Seal.open(body, columnNote, issuer, noteRow(orderID, id))
	return string(text), err
}

// noteRow names the row that a sealed note is bound to.
func noteRow(orderID, id uuid.UUID) string { return orderID.String() + "|" + id.String() }

func (s *Store) insertNote(ctx context.Context, tx pgx.Tx, key orderKey, n *Note) error {
	body, err := s.cfg.Seal.seal([]byte(n.Text), columnNote, key.issuer, noteRow(key.id, n.ID))
	if err != nil {
		return err
	}
	err = tx.QueryRow(ctx, `
		INSERT INTO order_notes (issuer_id, order_id, id, body, author) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT DO NOTHING RETURNING created_at`, key.issuer, key.id, n.ID, body, n.Author).Scan(&n.CreatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return errNoteThere
	}
	if err != nil {
		return fmt.Errorf("inserting a note: %w", err)
	}
	return nil
}

// noted makes the event that belongs to a note.
func noted(w *advances, o *lockedOrder, n *Note, action EventType, cleared order.Attention, evidence order.Evidence) error {
	detail, err := json.Marshal(noteDetail{n.ID, cleared})
	if err != nil {
		return fmt.Errorf("writing the detail of a note: %w", err)
	}
	w.advance(o, Cause{Kind: CauseRequest, Actor: n.Author, Action: action, Detail: detail}, evidence)
	return nil
}

// ErrNotRaised is returned by ClearAttention for an order that has no such attention.
var ErrNotRaised = errors.New("the order has no such attention")

// Clearance is what ClearAttention needs beside the action.
type Clearance struct {
	Action
	Attention order.Attention
	Note      string // what was done about it
}

// ClearAttention says that a person has dealt with an attention: it is not raised again
// before its cause ends and comes anew. One that was cleared before stays so. The error is
// ErrNotFound, ErrVersion or ErrNotRaised when there is nothing to clear.
func (s *Store) ClearAttention(ctx context.Context, c Clearance) (*Order, error) {
	o, err := s.act(ctx, c.Action, func(tx pgx.Tx, _ *pgx.Batch, w *advances, o *lockedOrder) error {
		switch {
		case slices.Contains(o.state.Attention, c.Attention):
		case o.state.HasAcknowledged(c.Attention):
			return nil
		default:
			return ErrNotRaised
		}
		note := Note{ID: uuid.New(), Text: c.Note, Author: c.Actor}
		if err := s.insertNote(ctx, tx, o.orderKey, &note); err != nil {
			return err
		}
		return noted(w, o, &note, EventAttentionCleared, c.Attention, order.Acknowledge{Attention: c.Attention, Operations: o.operations})
	})
	if err != nil {
		return nil, fmt.Errorf("clearing an attention: %w", err)
	}
	return o, nil
}
