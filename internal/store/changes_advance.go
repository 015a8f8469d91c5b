package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
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
	MayHave     bool               // it may be refused because an earlier try was taken, if there was one
}

// openChange is a change that D1 may still say something about. Those of an order stand in
// order_state.open_changes too, where the lock of the order reads them along: what
// advances an order costs no more for all those that nobody wants changed.
type openChange struct {
	ID          uuid.UUID          `json:"id"`
	Type        order.ChangeType   `json:"type"`
	State       order.ChangeState  `json:"state"`
	Reason      order.ChangeReason `json:"reason,omitempty"`
	OperationID string             `json:"operationId,omitempty"`
	Tried       bool               `json:"tried,omitempty"` // D1 may have it
	Batch       bool               `json:"batch,omitempty"` // it follows from the cancel of a batch

	note       string // why it is wanted, for its first event
	redirected bool   // the order has the new address
}

// waits tells whether the outcome is open.
func (c openChange) waits() bool {
	return c.State == order.ChangeRequested || c.State == order.ChangeSent
}

// forgotten tells that nothing can be heard of the change any more.
func (c openChange) forgotten() bool {
	settled := c.State == order.ChangeAccepted || c.State == order.ChangeRefused
	return settled && c.OperationID == "" && (!c.Tried || c.Reason == order.ReasonRefused)
}

// mayBe tells whether the change may be what a notification is about that is not of an
// operation known.
func (c openChange) mayBe(n *Notification) bool {
	return (c.waits() || c.State == order.ChangeExpired) && (c.OperationID == "" || n.OperationID == "")
}

// changeAtD1 is true for rows c of order_changes that D1 may have and may still answer, by
// a notification n whose operation is not known to be another's.
const changeAtD1 = changeWaits + ` AND c.sent_at IS NOT NULL`

// changeWaits is the same of those that D1 may have and those that it will get.
const changeWaits = `c.state IN ('REQUESTED', 'SENT', 'EXPIRED') AND (c.operation_id IS NULL OR n.operation_id = '')`

// changeRow is what becomes of a change.
type changeRow struct {
	key  orderKey
	open openChange
	sent bool // D1 may have got it now
}

// changeDetail is what the timeline tells of a change.
type changeDetail struct {
	ChangeID   uuid.UUID          `json:"changeId"`
	Type       order.ChangeType   `json:"type"`
	State      order.ChangeState  `json:"state"`
	Reason     order.ChangeReason `json:"reason,omitempty"`
	Redirected bool               `json:"redirected,omitempty"`
	Note       string             `json:"note,omitempty"`
}

// changeReported settles the change that an UPDATE_ORDER notification of the order is
// about. It tells whether the order has such a change, or certainly none: else the
// notification has to wait, for it may come before D1's answer to the change is stored.
func (a *advances) changeReported(o *lockedOrder, cause Cause, n *Notification) bool {
	c, found := reportedChange(o.open, n)
	if !found {
		return !slices.ContainsFunc(o.open, func(c openChange) bool { return c.mayBe(n) })
	}
	c.OperationID = cmp.Or(c.OperationID, n.OperationID)
	said := order.OperationStatus(n.Status)
	switch {
	case c.State == order.ChangeAccepted || c.Reason == order.ReasonRefused: // D1 has said so before
	case said == order.OperationSuccessful && c.Type == order.ChangeCancel:
		a.noteChange(o, changeRow{open: c})
		a.advance(o, cause, order.CancelDone{})                                  // which settles it, unless the card has left all the same
		if c.State == order.ChangeRefused && o.state.Status == order.Cancelled { // by another end, before
			c.State, c.Reason = order.ChangeAccepted, ""
			a.moveChange(o, cause, changeRow{open: c})
		}
	case said == order.OperationSuccessful:
		c.State, c.Reason = order.ChangeAccepted, ""
		a.moveChange(o, cause, changeRow{open: c})
	case said == order.OperationFailed && c.State != order.ChangeRefused:
		c.State, c.Reason = order.ChangeRefused, order.ReasonRefused
		a.moveChange(o, cause, changeRow{open: c})
	case c.State == order.ChangeRequested || c.State == order.ChangeExpired: // it is under way
		c.State, c.Reason = order.ChangeSent, ""
		a.moveChange(o, cause, changeRow{open: c, sent: true})
	default:
		a.noteChange(o, changeRow{open: c})
	}
	a.sendChange(o)
	return true
}

// ShownChange is an UPDATE_ORDER operation of the order that D1 shows when it is asked.
type ShownChange struct {
	OperationID string
	Status      order.OperationStatus
}

// changeShown settles a change whose outcome no notification has told. D1 shows old changes
// too, so it is only by its operation that one is known.
func (a *advances) changeShown(o *lockedOrder, cause Cause, shown ShownChange) {
	open := slices.ContainsFunc(o.open, func(c openChange) bool {
		return c.OperationID == shown.OperationID && (c.waits() || c.State == order.ChangeExpired)
	})
	if open && shown.Status != order.OperationPending {
		a.changeReported(o, cause, &Notification{OperationID: shown.OperationID, Status: string(shown.Status)})
	}
}

// reportedChange finds the change that a notification is about: by its operation; else by
// its own id, for D1 may repeat that as the issuerRequestId; else the only one that D1 may
// have and that has no other operation.
func reportedChange(open []openChange, n *Notification) (openChange, bool) {
	var candidates []openChange
	for _, c := range open {
		switch {
		case n.OperationID != "" && c.OperationID == n.OperationID, n.IssuerRequestID == c.ID.String():
			return c, true
		case c.Tried && c.mayBe(n):
			candidates = append(candidates, c)
		}
	}
	if len(candidates) != 1 {
		return openChange{}, false
	}
	return candidates[0], true
}

// changeAnswered does what follows from a call that brought a change to D1. That D1 has
// the change is a fact, whoever holds its message by now; that it does not want it counts
// only for the holder, for another worker may have been luckier. It tells whether the
// message stays.
func (a *advances) changeAnswered(o *lockedOrder, done *Completion, held bool) (stays bool) {
	if done.Change != nil && done.Change.OperationID != "" {
		a.changeOperations = append(a.changeOperations, changeOperation{o.orderKey, done.Message.Change.ID, done.Change.OperationID})
	}
	i := slices.IndexFunc(o.open, func(c openChange) bool { return c.ID == done.Message.Change.ID })
	if i < 0 {
		return false // settled meanwhile
	}
	c, cause := o.open[i], Cause{Kind: CauseAttempt, ID: done.Attempt.ID.String()}
	before := done.Message.SentBefore // by a worker that died
	switch answer := done.Change; {
	case answer != nil && answer.Taken:
		c.OperationID = cmp.Or(c.OperationID, answer.OperationID)
		if c.State != order.ChangeRequested && c.State != order.ChangeExpired {
			a.noteChange(o, changeRow{open: c, sent: true}) // told by a notification already, or settled
			break
		}
		c.State, c.Reason = order.ChangeSent, ""
		a.moveChange(o, cause, changeRow{open: c, sent: true})
	case !held || !c.waits():
		return false
	case answer != nil && answer.MayHave && (c.Tried || before):
		c.State, c.Reason = order.ChangeSent, ""
		a.moveChange(o, cause, changeRow{open: c, sent: before})
	case answer != nil:
		c.State, c.Reason = order.ChangeRefused, cmp.Or(answer.Reason, order.ReasonRefused)
		a.moveChange(o, cause, changeRow{open: c})
	default:
		if !done.Next.Unsent || before { // it may have it
			a.noteChange(o, changeRow{open: c, sent: true})
		}
		stays = true // unless a cancel goes first
	}
	a.sendChange(o)
	return stays
}

// changeOperation is an operation by which D1 knows a change. One that is sent again may
// have several.
type changeOperation struct {
	key         orderKey
	change      uuid.UUID
	operationID string
}

// placeCancel has D1 cancel an order if it turns out to have it: a worker has it, or D1 may,
// while somebody cancels its batch.
func (a *advances) placeCancel(o *lockedOrder, cause Cause) error {
	if o.cancelling() {
		return nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("making a change id: %w", err)
	}
	c := openChange{ID: id, Type: order.ChangeCancel, State: order.ChangeRequested, Batch: true}
	a.placed = append(a.placed, placedChange{o.orderKey, id, cause.Actor})
	a.noteChange(o, changeRow{open: c})
	a.changeEvent(o, cause, c)
	return nil
}

// placedChange is a cancel that follows from that of a batch.
type placedChange struct {
	key   orderKey
	id    uuid.UUID
	actor string
}

// cancelling tells whether a cancel of the order waits to be sent.
func (o *lockedOrder) cancelling() bool {
	return slices.ContainsFunc(o.open, func(c openChange) bool { return c.Type == order.ChangeCancel && c.State == order.ChangeRequested })
}

// withdrawCancels gives up the cancels of an order that somebody has sent after all.
func (a *advances) withdrawCancels(o *lockedOrder, cause Cause) {
	for _, c := range o.open { // moveChange makes a list of its own
		if c.Type == order.ChangeCancel && c.State == order.ChangeRequested && o.state.Rank == 0 {
			c.State, c.Reason = order.ChangeRefused, order.ReasonRetried
			a.moveChange(o, cause, changeRow{open: c})
		}
	}
}

// settleChanges does what an order's new state means for its changes: some are settled by
// it, and others can go to D1 now that it has the order.
func (a *advances) settleChanges(o *lockedOrder, cause Cause) {
	switch {
	case len(o.open) == 0:
		return
	case o.state.Status == order.Rejected && o.cancelling(): // D1 does not have it, and never will
		a.advance(o, cause, order.Cancel{})
		return
	}
	for _, c := range o.open { // moveChange makes a list of its own
		state, reason := order.SettleChange(c.Type, c.State, o.state)
		if state != c.State && c.State == order.ChangeRequested && c.Tried { // D1 may have it
			state, reason = order.SettleChange(c.Type, order.ChangeSent, o.state)
		}
		if state != c.State {
			c.State, c.Reason = state, reason
			a.moveChange(o, cause, changeRow{open: c})
		}
	}
	// Also when D1 had the order before: the release before does not look at changes.
	a.sendChange(o)
}

// moveChange gives a change of the order another state, which is an event.
func (a *advances) moveChange(o *lockedOrder, cause Cause, r changeRow) {
	a.noteChange(o, r)
	var evidence []order.Evidence
	if r.open.State == order.ChangeExpired {
		evidence = append(evidence, order.Notice{Attention: order.AttentionChangeUnanswered})
	} else if !slices.ContainsFunc(o.open, func(c openChange) bool { return c.State == order.ChangeExpired }) {
		evidence = append(evidence, order.Cured{Attention: order.AttentionChangeUnanswered})
	}
	if c := r.open; c.Batch && c.State == order.ChangeRefused && order.MayStillArrive(c.Type, c.State, c.Reason) {
		evidence = append(evidence, order.Notice{Attention: order.AttentionStopTooLate}) // nobody waits for this one's outcome
	}
	a.changeEvent(o, cause, r.open, evidence...)
}

// changeEvent gives the order a version that tells of a change.
func (a *advances) changeEvent(o *lockedOrder, cause Cause, c openChange, evidence ...order.Evidence) {
	before := o.state
	o.state, _ = order.Advance(before, a.store.clock(o), append(evidence, order.Details{})...)
	cause.Detail, _ = json.Marshal(changeDetail{c.ID, c.Type, c.State, c.Reason, c.redirected, c.note}) // texts and an id: it cannot fail
	o.changes = append(o.changes, change{before, o.state, cause})
	a.touch(o)
	a.events = append(a.events, event{o.orderKey, EventChangeChanged, o.state, before.Status, cause})
}

// noteChange notes what is to be written of a change, and keeps the order's list of them as
// it then is.
func (a *advances) noteChange(o *lockedOrder, r changeRow) {
	r.key, r.open.Tried = o.orderKey, r.open.Tried || r.sent
	if i := slices.IndexFunc(a.changes, func(known changeRow) bool { return known.open.ID == r.open.ID }); i >= 0 {
		r.sent = r.sent || a.changes[i].sent
		a.changes[i] = r
	} else {
		a.changes = append(a.changes, r)
	}
	// A list of its own: callers go through the old one, or come back to it.
	open := slices.DeleteFunc(slices.Clone(o.open), func(c openChange) bool { return c.ID == r.open.ID })
	if !r.open.forgotten() {
		open = append(open, r.open)
	}
	slices.SortFunc(open, func(x, y openChange) int { return slices.Compare(x.ID[:], y.ID[:]) })
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

// queueChanges queues what becomes of changes, and the messages that bring them to D1.
func (a *advances) queueChanges(b *pgx.Batch) {
	if len(a.changing) == 0 && len(a.sending) == 0 && len(a.changeOperations) == 0 {
		return
	}
	a.queueChangeOperations(b)
	a.queuePlacedChanges(b)
	a.queueOpenChanges(b)
	a.queueChangeRows(b)
	a.queueChangeMessages(b)
}

func (a *advances) queuePlacedChanges(b *pgx.Batch) {
	n := len(a.placed)
	if n == 0 {
		return
	}
	issuers, ids, orders, actors := make(texts, n), make(uuids, n), make(uuids, n), make(texts, n)
	for i := range a.placed {
		c := &a.placed[i]
		issuers[i], ids[i], orders[i], actors[i] = c.key.issuer, pgID(&c.id), pgID(&c.key.id), c.actor
	}
	exec(b, `
		INSERT INTO order_changes (issuer_id, id, order_id, type, state, created_by)
		SELECT i, c, o, $5, $6, a FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[]) AS t(i, c, o, a)`,
		issuers, ids, orders, actors, order.ChangeCancel, order.ChangeRequested)
}

func (a *advances) queueOpenChanges(b *pgx.Batch) {
	if len(a.changing) == 0 {
		return
	}
	issuers, ids := columns(keysOf(a.changing))
	lists := make(texts, len(a.changing))
	for i, o := range a.changing {
		if len(o.open) > 0 {
			list, _ := json.Marshal(o.open) // texts and ids: it cannot fail
			lists[i] = string(list)
		}
	}
	exec(b, `
		UPDATE order_state s SET open_changes = nullif(t.open, '')::jsonb
		FROM unnest($1::text[], $2::uuid[], $3::text[]) AS t(issuer_id, order_id, open)
		WHERE s.issuer_id = t.issuer_id AND s.order_id = t.order_id`, issuers, ids, lists)
}

// queueChangeOperations queues what D1 calls changes, also those that are settled.
func (a *advances) queueChangeOperations(b *pgx.Batch) {
	n := len(a.changeOperations)
	if n == 0 {
		return
	}
	issuers, orders, ids, operations := make(texts, n), make(uuids, n), make(uuids, n), make(texts, n)
	for i := range a.changeOperations {
		c := &a.changeOperations[i]
		issuers[i], orders[i], ids[i], operations[i] = c.key.issuer, pgID(&c.key.id), pgID(&c.change), c.operationID
	}
	exec(b, insertChangeOperations, issuers, operations, orders, OperationChange, AttemptChange)
	exec(b, `
		UPDATE order_changes c SET operation_id = t.operation_id
		FROM unnest($1::text[], $2::uuid[], $3::text[]) AS t(issuer_id, id, operation_id)
		WHERE c.issuer_id = t.issuer_id AND c.id = t.id AND c.operation_id IS NULL`, issuers, ids, operations)
}

const insertChangeOperations = `
	INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
	SELECT i, p, o, $4, $5 FROM unnest($1::text[], $2::text[], $3::uuid[]) AS t(i, p, o) WHERE p <> '' ORDER BY i, p
	ON CONFLICT DO NOTHING`

// queueChangeRows queues the new states of changes, and the ends of the messages of those
// that need no sending any more. An address is of no use once D1 does not want it.
func (a *advances) queueChangeRows(b *pgx.Batch) {
	n := len(a.changes)
	if n == 0 {
		return
	}
	issuers, orders, ids := make(texts, n), make(uuids, n), make(uuids, n)
	states, reasons, operations, sents := make(texts, n), make(texts, n), make(texts, n), make([]bool, n)
	timeouts := make([]time.Duration, n)
	for i := range a.changes {
		r := &a.changes[i]
		issuers[i], orders[i], ids[i] = r.key.issuer, pgID(&r.key.id), pgID(&r.open.ID)
		states[i], reasons[i], operations[i], sents[i] = string(r.open.State), string(r.open.Reason), r.open.OperationID, r.sent
		timeouts[i] = a.store.changeTimeout(r.key.issuer)
	}
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
	exec(b, insertChangeOperations, issuers, operations, orders, OperationChange, AttemptChange)
	exec(b, `
		DELETE FROM outbox m USING unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[]) AS t(issuer_id, order_id, id, state)
		WHERE m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'change' AND m.change_id = t.id AND t.state <> 'REQUESTED'`,
		issuers, orders, ids, states)
}

// queueChangeMessages queues the messages that bring changes to D1, one for an order. One
// that a worker has goes first, and the next follows from its answer: what becomes of that
// message is queued before. One that brings another change is another message: see
// queueRenewed.
func (a *advances) queueChangeMessages(b *pgx.Batch) {
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
	exec(b, `
		INSERT INTO outbox AS m (lane, kind, class, issuer_id, order_id, card_id, change_id)
		SELECT $5 || i, $6, $7, i, o, c, id FROM unnest($1::text[], $2::uuid[], $3::text[], $4::uuid[]) AS t(i, o, c, id) ORDER BY i, o
		ON CONFLICT (issuer_id, order_id, kind) DO UPDATE SET change_id = EXCLUDED.change_id, run_at = now(), tries = 0, first_sent_at = NULL, id = DEFAULT
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
	if c.address != nil {
		var err error
		if address, err = s.cfg.Seal.open(c.address, columnChangeAddress, m.IssuerID, change.ID.String()); err != nil {
			return change, nil, err
		}
	}
	body, err := order.ChangeBody(change.Type, m.IssuerRequestID, address)
	return change, body, err
}
