package d1sim

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// The types of a change (pull & change).
const (
	ChangeCancel                = "CANCEL"
	ChangeAccelerate            = "ACCELERATE"
	ChangeRedirect              = "REDIRECT"
	ChangeAccelerateAndRedirect = "ACCELERATE_AND_REDIRECT"
)

// changeRefused is the errorCode of an UPDATE_ORDER that failed.
const changeRefused = "CHANGE_REFUSED"

// change is one request to change an order.
type change struct {
	issuerID string
	card     *card
	kind     string // CANCEL, ...
	city     string // of the new address, "" without one
	op       Operation
	takenAt  time.Time
	due      time.Time // when the centre decides
}

func (c *change) accelerates() bool {
	return c.kind == ChangeAccelerate || c.kind == ChangeAccelerateAndRedirect
}

func (c *change) redirects() bool {
	return c.kind == ChangeRedirect || c.kind == ChangeAccelerateAndRedirect
}

// checkChange checks the body of a change and tells the first fault.
func checkChange(body map[string]any) *fault {
	members := []member{
		required("type", among(ChangeCancel, ChangeAccelerate, ChangeRedirect, ChangeAccelerateAndRedirect)),
		optional("issuerRequestId", matching(requestIDPattern)),
	}
	if kind, _ := body["type"].(string); strings.HasSuffix(kind, ChangeRedirect) {
		members = append(members, required("newDeliveryAddress", address))
	}
	return object(members...)("", body)
}

// change takes a change of an order that is under way.
func (s *Sim) change(q *inquiry) answer {
	body, refusal := s.document(q)
	if refusal != nil {
		return *refusal
	}
	if f := checkChange(body); f != nil {
		return q.refuse(http.StatusBadRequest, f.code, f.String())
	}
	q.record.Change = body["type"].(string)
	newAddress, _ := body["newDeliveryAddress"].(map[string]any)
	city, _ := newAddress["city"].(string)
	return s.takeChange(q, city)
}

// takeChange stores the change and has the centre decide, at once or later.
func (s *Sim) takeChange(q *inquiry, city string) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, set, now := s.book, s.settings, time.Now()
	c := b.toChange(q.record)
	if c == nil {
		return q.refuse(http.StatusNotFound, "", "no such order")
	}
	ch := &change{
		issuerID: q.record.IssuerID, card: c, kind: q.record.Change, city: city,
		takenAt: now, due: now.Add(time.Duration(set.ChangeDelay)),
		op: Operation{
			OperationID: uuid.NewString(), Operation: "UPDATE_ORDER", Status: OperationPending, StartTime: told(now, set),
			CardID: c.op.CardID, IssuerRequestID: c.op.IssuerRequestID,
		},
	}
	if set.RepeatedChange == RepeatSame {
		if first := b.sameChange(ch); first != nil {
			return q.taken(first.op.OperationID)
		}
	}
	if set.LateChange == LateChangeRefused && ch.late(set) {
		return q.refuse(http.StatusConflict, changeRefused, "order is too far for it")
	}
	b.changes, b.undecided = append(b.changes, ch), append(b.undecided, ch)
	if set.ChangePending {
		b.tellChange(ch, now, set)
	}
	b.decideDue(now, set)
	s.announce()
	return q.taken(ch.op.OperationID)
}

// toChange finds the order that a change is for: the one it names, else the card's latest.
func (b *book) toChange(r Request) *card {
	orders := b.byCard[cardKey{r.IssuerID, r.CardID}]
	if r.IssuerRequestID == "" {
		if len(orders) == 0 {
			return nil
		}
		return orders[len(orders)-1]
	}
	i := slices.IndexFunc(orders, func(c *card) bool { return c.op.IssuerRequestID == r.IssuerRequestID })
	if i < 0 {
		return nil
	}
	return orders[i]
}

// sameChange finds an earlier change of the same order, type and city that did not fail.
func (b *book) sameChange(ch *change) *change {
	i := slices.IndexFunc(b.changes, func(other *change) bool {
		return other.card == ch.card && other.kind == ch.kind && other.city == ch.city && other.op.Status != OperationFailed
	})
	if i < 0 {
		return nil
	}
	return b.changes[i]
}

// late tells whether the order is beyond what the centre can still change.
func (c *change) late(set Settings) bool {
	if c.card.op.Status != OperationPending {
		return true
	}
	beyond := func(until string) bool {
		return slices.Index(productionPath, c.card.step) > slices.Index(productionPath, until) // never is before all
	}
	return c.kind == ChangeCancel && beyond(set.ChangeUntil.Cancel) ||
		c.accelerates() && beyond(set.ChangeUntil.Accelerate) ||
		c.redirects() && beyond(set.ChangeUntil.Redirect)
}

// decideDue decides every change that is due, and tells how many and when the next one is.
func (b *book) decideDue(now time.Time, set Settings) (decided int, next time.Time) {
	b.undecided = slices.DeleteFunc(b.undecided, func(ch *change) bool {
		if ch.due.After(now) {
			if next.IsZero() || ch.due.Before(next) {
				next = ch.due
			}
			return false
		}
		b.decide(ch, now, set)
		decided++
		return true
	})
	return decided, next
}

// decide does a change, or refuses it, and tells of that.
func (b *book) decide(ch *change, now time.Time, set Settings) {
	end := told(now, set)
	ch.op.EndTime = &end
	ch.op.Status = OperationSuccessful
	if ch.late(set) {
		ch.op.Status = OperationFailed
		ch.op.ErrorCode, ch.op.Error, ch.op.Details.Reason = changeRefused, "order is too far for it", "too late"
	}
	if set.ChangeTold == ToldAll || set.ChangeTold == ToldChange {
		b.tellChange(ch, now, set)
	}
	if ch.op.Status == OperationFailed {
		return
	}
	c := ch.card
	if ch.redirects() {
		c.city = ch.city
	}
	if ch.accelerates() {
		c.hurried = true
		b.takeOut(c)
		b.lineUp(c, set)
	}
	if ch.kind == ChangeCancel {
		c.op.Status, c.op.EndTime = set.CanceledStatus, &end
		c.op.Details.Status, c.op.Details.Reason = CardProdCanceled, ""
		c.movedAt = now
		b.takeOut(c)
		if set.ChangeTold == ToldAll || set.ChangeTold == ToldCard {
			b.tellCard(c, now, set)
		}
	}
}

// Change is a change of an order, as the management port shows it.
type Change struct {
	IssuerID            string    `json:"issuerId"`
	CardID              string    `json:"cardId"`
	IssuerRequestID     string    `json:"issuerRequestId,omitempty"` // of the order
	OperationID         string    `json:"operationId"`               // of the change
	ProductionOperation string    `json:"productionOperationId"`     // of the order
	Type                string    `json:"type"`
	Status              string    `json:"status"` // PENDING, SUCCESSFUL, FAILED
	StartTime           time.Time `json:"startTime"`
}

// Changes lists the changes taken since the last reset, oldest first.
func (s *Sim) Changes() []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Change, 0, len(s.book.changes))
	for _, ch := range s.book.changes {
		list = append(list, Change{
			IssuerID: ch.issuerID, CardID: ch.op.CardID, IssuerRequestID: ch.op.IssuerRequestID,
			OperationID: ch.op.OperationID, ProductionOperation: ch.card.op.OperationID,
			Type: ch.kind, Status: ch.op.Status, StartTime: ch.op.StartTime,
		})
	}
	return list
}
