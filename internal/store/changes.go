package store

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"cardorder/internal/order"
)

// ChangeMessage is the change that a message of KindChange brings to D1; its body is the
// message's.
type ChangeMessage struct {
	ID   uuid.UUID
	Type order.ChangeType
}

// ChangeAnswer is what D1 answered to a change.
type ChangeAnswer struct {
	Taken       bool               // it has it; whether it does it, a notification tells
	OperationID string             // of the change, "" when D1 named none
	Reason      order.ChangeReason // why it was refused; "" for D1's plain no
}

// openChange is a change that D1 may still answer. Those of an order stand in
// order_state.open_changes too, where the lock of the order reads them along: what
// advances an order costs no more for all those that nobody wants changed.
type openChange struct {
	ID          uuid.UUID         `json:"id"`
	Type        order.ChangeType  `json:"type"`
	State       order.ChangeState `json:"state"` // REQUESTED, SENT, EXPIRED
	OperationID string            `json:"operationId,omitempty"`
	Tried       bool              `json:"tried,omitempty"` // D1 may have it
}

// atD1 tells whether D1 may have the change and has not said what it did.
func (c openChange) atD1() bool { return c.Tried || c.State != order.ChangeRequested }

// changeAtD1 is the same of rows c of order_changes.
const changeAtD1 = `c.state IN ('REQUESTED', 'SENT', 'EXPIRED') AND c.sent_at IS NOT NULL`

// changeRow is what becomes of a change.
type changeRow struct {
	key  orderKey
	open openChange
	// Reason is that of its new state.
	reason order.ChangeReason
	sent   bool // D1 may have got it now
}

// changeDetail is what the timeline tells of a change.
type changeDetail struct {
	ChangeID uuid.UUID          `json:"changeId"`
	Type     order.ChangeType   `json:"type"`
	State    order.ChangeState  `json:"state"`
	Reason   order.ChangeReason `json:"reason,omitempty"`
}

// changeReported settles the change that an UPDATE_ORDER notification of the order is
// about. It tells whether there is one that D1 may still answer: if not, the notification
// has to wait, for it may come before D1's answer to the change itself is stored.
func (a *advances) changeReported(o *lockedOrder, cause Cause, n *Notification) bool {
	c, found := reportedChange(o.open, n)
	if !found {
		return false
	}
	if c.OperationID == "" {
		c.OperationID = n.OperationID
	}
	switch order.OperationStatus(n.Status) {
	case order.OperationSuccessful:
		if c.Type == order.ChangeCancel {
			a.noteChange(changeRow{key: o.orderKey, open: c}, o)
			a.advance(o, cause, order.CancelDone{}) // which settles it
			return true
		}
		c.State = order.ChangeAccepted
		a.moveChange(o, cause, changeRow{open: c})
	case order.OperationFailed:
		c.State = order.ChangeRefused
		a.moveChange(o, cause, changeRow{open: c, reason: order.ReasonRefused})
	default: // it is under way
		if c.State != order.ChangeSent {
			c.State = order.ChangeSent
			a.moveChange(o, cause, changeRow{open: c})
			a.sendChange(o)
			return true
		}
		a.noteChange(changeRow{key: o.orderKey, open: c}, o)
	}
	return true
}

// reportedChange finds the change that a notification is about: by its operation; else by
// its own id, for D1 may repeat that as the issuerRequestId; else the only one that D1 may
// have, if it has no other operation.
func reportedChange(open []openChange, n *Notification) (openChange, bool) {
	var candidates []openChange
	for _, c := range open {
		switch {
		case n.OperationID != "" && c.OperationID == n.OperationID, n.IssuerRequestID == c.ID.String():
			return c, true
		case c.atD1() && (c.OperationID == "" || n.OperationID == ""):
			candidates = append(candidates, c)
		}
	}
	if len(candidates) != 1 {
		return openChange{}, false
	}
	return candidates[0], true
}

// settleChanges does what an order's new state means for its changes: some are settled by
// it, and others can go to D1 now that it has the order.
func (a *advances) settleChanges(o *lockedOrder, before order.State, cause Cause) {
	if len(o.open) == 0 {
		return
	}
	for _, c := range o.open { // moveChange makes a list of its own
		state, reason := order.SettleChange(c.Type, c.State, o.state)
		if state != c.State {
			c.State = state
			a.moveChange(o, cause, changeRow{open: c, reason: reason})
		}
	}
	if before.Rank == 0 && o.state.Rank > 0 {
		a.sendChange(o)
	}
}

// moveChange gives a change of the order another state, which is an event.
func (a *advances) moveChange(o *lockedOrder, cause Cause, r changeRow) {
	r.key = o.orderKey
	a.noteChange(r, o)
	var evidence order.Evidence = order.Details{}
	unanswered := slices.ContainsFunc(o.open, func(c openChange) bool { return c.State == order.ChangeExpired })
	switch had := slices.Contains(o.state.Attention, order.AttentionChangeUnanswered); {
	case r.open.State == order.ChangeExpired:
		evidence = order.Notice{Attention: order.AttentionChangeUnanswered}
	case had && !unanswered:
		evidence = order.Cured{Attention: order.AttentionChangeUnanswered}
	}
	a.changeEvent(o, cause, r, evidence)
}

// changeEvent gives the order a version that tells of a change.
func (a *advances) changeEvent(o *lockedOrder, cause Cause, r changeRow, evidence ...order.Evidence) {
	before := o.state
	next, _ := order.Advance(before, order.Clock{Now: o.now, Limits: a.store.limits(o)}, append(evidence, order.Details{})...)
	o.state = next
	// It cannot fail: strings and an id.
	cause.Detail, _ = json.Marshal(changeDetail{r.open.ID, r.open.Type, r.open.State, r.reason})
	o.changes = append(o.changes, change{before, next, cause})
	a.touch(o)
	a.events = append(a.events, event{o.orderKey, EventChangeChanged, next, before.Status, cause})
}

// noteChange notes what is to be written of a change, and keeps the order's list of open
// ones as it then is.
func (a *advances) noteChange(r changeRow, o *lockedOrder) {
	r.open.Tried = r.open.Tried || r.sent
	i := slices.IndexFunc(a.changes, func(known changeRow) bool { return known.open.ID == r.open.ID })
	if i < 0 {
		a.changes = append(a.changes, r)
	} else {
		r.sent = r.sent || a.changes[i].sent
		a.changes[i] = r
	}
	var open []openChange
	for _, c := range o.open {
		if c.ID != r.open.ID {
			open = append(open, c)
		} else if s := r.open.State; s != order.ChangeAccepted && s != order.ChangeRefused {
			open = append(open, r.open)
		}
	}
	o.open = open
	if !slices.Contains(a.changing, o) {
		a.changing = append(a.changing, o)
	}
}

// sendChange has the next change of an order brought to D1, if there is one and D1 has the
// order.
func (a *advances) sendChange(o *lockedOrder) {
	if !slices.Contains(a.sending, o) {
		a.sending = append(a.sending, o)
	}
}

// nextChange is the change that D1 is to be told of next. A cancel goes first: what else
// was wanted is of no use then.
func (o *lockedOrder) nextChange() (next openChange, ok bool) {
	if !o.state.AtD1() {
		return next, false
	}
	for _, c := range o.open {
		if c.State == order.ChangeRequested && (!ok || c.Type == order.ChangeCancel && next.Type != order.ChangeCancel) {
			next, ok = c, true
		}
	}
	return next, ok
}

// changeAnswered does what follows from a call that brought a change to D1. That D1 has
// the change is a fact, whoever holds its message by now; that it does not want it counts
// only for the holder, for another worker may have been more lucky. It tells whether the message stays.
func (a *advances) changeAnswered(o *lockedOrder, done *Completion, held bool) (stays bool) {
	i := slices.IndexFunc(o.open, func(c openChange) bool { return c.ID == done.Message.Change.ID })
	if i < 0 {
		return false
	}
	c, cause := o.open[i], Cause{Kind: CauseAttempt, ID: done.Attempt.ID.String()}
	switch answer := done.Change; {
	case answer != nil && answer.Taken:
		if c.OperationID == "" {
			c.OperationID = answer.OperationID
		}
		if c.State == order.ChangeSent {
			a.noteChange(changeRow{key: o.orderKey, open: c}, o)
			break
		}
		c.State = order.ChangeSent
		a.moveChange(o, cause, changeRow{open: c, sent: true})
	case !held:
	case answer != nil:
		c.State = order.ChangeRefused
		reason := answer.Reason
		if reason == "" {
			reason = order.ReasonRefused
		}
		a.moveChange(o, cause, changeRow{open: c, reason: reason})
	case !done.Next.Unsent: // it may have it
		a.noteChange(changeRow{key: o.orderKey, open: c, sent: true}, o)
		return true
	default:
		return true
	}
	a.sendChange(o)
	return false
}

// queueChanges queues what becomes of changes, and the messages that bring them to D1.
func (a *advances) queueChanges(b *pgx.Batch) {
	if len(a.changing) > 0 {
		n := len(a.changing)
		issuers, ids := columns(keysOf(a.changing))
		lists := make(texts, n)
		for i, o := range a.changing {
			if len(o.open) > 0 {
				list, _ := json.Marshal(o.open) // it cannot fail: strings and ids
				lists[i] = string(list)
			}
		}
		exec(b, `
			UPDATE order_state s SET open_changes = nullif(t.open, '')::jsonb
			FROM unnest($1::text[], $2::uuid[], $3::text[]) AS t(issuer_id, order_id, open)
			WHERE s.issuer_id = t.issuer_id AND s.order_id = t.order_id`, issuers, ids, lists)
	}
	if n := len(a.changes); n > 0 {
		issuers, orders, ids := make(texts, n), make(uuids, n), make(uuids, n)
		states, reasons, operations, sents := make(texts, n), make(texts, n), make(texts, n), make([]bool, n)
		timeouts := make([]time.Duration, n)
		for i := range a.changes {
			r := &a.changes[i]
			issuers[i], orders[i], ids[i] = r.key.issuer, pgID(&r.key.id), pgID(&r.open.ID)
			states[i], reasons[i], operations[i], sents[i] = string(r.open.State), string(r.reason), r.open.OperationID, r.sent
			timeouts[i] = a.store.changeTimeout(r.key.issuer)
		}
		// The address is of no use once D1 does not want it.
		exec(b, `
			UPDATE order_changes c SET state = t.state, reason = nullif(t.reason, ''), updated_at = clock_timestamp(),
				operation_id = coalesce(nullif(t.operation_id, ''), c.operation_id),
				sent_at = CASE WHEN t.sent THEN now() ELSE c.sent_at END,
				expires_at = CASE WHEN t.state = 'SENT' AND c.state <> 'SENT' THEN now() + t.timeout ELSE c.expires_at END,
				address = CASE WHEN t.state <> 'REFUSED' THEN c.address END
			FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::interval[])
				AS t(issuer_id, id, state, reason, operation_id, sent, timeout)
			WHERE c.issuer_id = t.issuer_id AND c.id = t.id`,
			issuers, ids, states, reasons, operations, sents, timeouts)
		exec(b, `
			INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
			SELECT i, p, o, $4, $5 FROM unnest($1::text[], $2::text[], $3::uuid[]) AS t(i, p, o) WHERE p <> '' ORDER BY i, p
			ON CONFLICT DO NOTHING`, issuers, operations, orders, OperationChange, AttemptChange)
		exec(b, `
			DELETE FROM outbox m USING unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[]) AS t(issuer_id, order_id, id, state)
			WHERE m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'change' AND m.change_id = t.id AND t.state <> 'REQUESTED'`,
			issuers, orders, ids, states)
	}
	var issuers, cards texts
	var orders, ids uuids
	var timeouts []time.Duration
	for _, o := range a.sending {
		if c, ok := o.nextChange(); ok {
			issuers, orders, cards, ids = append(issuers, o.issuer), append(orders, pgID(&o.id)), append(cards, o.cardID), append(ids, pgID(&c.ID))
			timeouts = append(timeouts, a.store.changeTimeout(o.issuer))
		}
	}
	if len(ids) == 0 {
		return
	}
	// A message that a worker has goes first.
	exec(b, `
		INSERT INTO outbox AS m (lane, kind, class, issuer_id, order_id, card_id, change_id)
		SELECT $5 || i, $6, $7, i, o, c, id FROM unnest($1::text[], $2::uuid[], $3::text[], $4::uuid[]) AS t(i, o, c, id) ORDER BY i, o
		ON CONFLICT (issuer_id, order_id, kind) DO UPDATE SET change_id = EXCLUDED.change_id, run_at = now(), tries = 0
		WHERE m.claim_token IS NULL AND m.change_id <> EXCLUDED.change_id`,
		issuers, orders, cards, ids, LaneOf(""), KindChange, ClassSingle)
	exec(b, `
		UPDATE order_changes c SET expires_at = now() + t.timeout
		FROM unnest($1::text[], $2::uuid[], $3::interval[]) AS t(issuer_id, id, timeout)
		WHERE c.issuer_id = t.issuer_id AND c.id = t.id AND c.expires_at IS NULL`, issuers, ids, timeouts)
}

// changeTimeout is for how long D1 may leave a change of an issuer's unanswered.
func (s *Store) changeTimeout(issuer string) time.Duration {
	if s.cfg.ChangeTimeout != nil {
		if timeout := s.cfg.ChangeTimeout(issuer); timeout > 0 {
			return timeout
		}
	}
	return 72 * time.Hour
}

// claimedChange is what a claim reads of a change.
type claimedChange struct {
	id      pgtype.UUID
	kind    *order.ChangeType
	address pgtype.DriverBytes // good until the next row
}

// openChangeBody puts together what D1 is sent about a change.
func (s *Store) openChangeBody(m *Message, c claimedChange) (*ChangeMessage, []byte, error) {
	if c.kind == nil {
		return &ChangeMessage{}, nil, errors.New("reading a change: there is none")
	}
	change := &ChangeMessage{ID: c.id.Bytes, Type: *c.kind}
	var address []byte
	if change.Type.Redirects() && c.address != nil {
		var err error
		if address, err = s.cfg.Seal.open(c.address, columnChangeAddress, m.IssuerID, change.ID.String()); err != nil {
			return change, nil, err
		}
	}
	body, err := order.ChangeBody(change.Type, m.IssuerRequestID, address)
	return change, body, err
}

// cancelling tells whether a cancel of the order waits to be sent: D1 may have it.
func (o *lockedOrder) cancelling() bool {
	return slices.ContainsFunc(o.open, func(c openChange) bool { return c.Type == order.ChangeCancel && c.State == order.ChangeRequested })
}
