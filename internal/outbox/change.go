package outbox

import (
	"context"
	"net/http"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// change brings a change of an order to D1. Unlike an order it is simply sent again when
// its answer was lost: done twice it changes no more than done once.
func (l *lane) change(ctx context.Context, j *job, call d1client.Call, attempt store.Attempt) (store.Completion, d1client.Reply, bool) {
	attempt.Kind = store.AttemptChange
	if j.Err != nil {
		l.log.Error("a change's sealed content cannot be opened", "orderId", j.OrderID, "changeId", j.Change.ID, "error", j.Err)
		return unreadableChange(j.Message, attempt), d1client.Reply{Reason: reasonUnreadableContent}, true
	}
	answer := l.d1.Change(ctx, call)
	if answer.Reason == d1client.ReasonNotSent {
		return store.Completion{}, d1client.Reply{}, false
	}
	return changed(j.Message, attempt, answer), answer.Reply, true
}

// changed says what follows from D1's answer to a change. The order itself only moves
// when a notification tells what became of it.
func changed(m store.Message, attempt store.Attempt, a d1client.Answer) store.Completion {
	attempt.Outcome, attempt.OperationID = a.Outcome.String(), a.OperationID
	c := store.Completion{Message: m, Attempt: note(attempt, a.Reply)}
	switch a.Outcome {
	case d1client.Taken:
		c.Change = &store.ChangeAnswer{Taken: true, OperationID: a.OperationID}
	case d1client.Refused:
		c.Change = &store.ChangeAnswer{MayHave: a.Status != http.StatusBadRequest && a.Status != http.StatusNotFound}
	default:
		c.Next = store.Next{
			RunIn: max(a.RetryAfter, backoff(m.Tries)), Tries: m.Tries + 1,
			Unsent: a.Outcome == d1client.NotTaken,
		}
	}
	return c
}

// shownChanges lists what D1 shows of changes of the order when it is asked how that stands.
func shownChanges(m store.Message, operations []d1client.Operation, around surroundings) (list []store.ShownChange) {
	for _, op := range operations {
		if owner, owned := around.owners.Operations[op.OperationID]; op.Operation == store.OperationChange && owned && owner.OrderID == m.OrderID {
			list = append(list, store.ShownChange{OperationID: op.OperationID, Status: order.OperationStatus(op.Status)})
		}
	}
	return list
}

// unreadableChange keeps a change whose content cannot be read until it expires: a key
// may have been missing.
func unreadableChange(m store.Message, attempt store.Attempt) store.Completion {
	return store.Completion{
		Message: m, Attempt: unread(attempt),
		Next: store.Next{RunIn: unreadableAgain, Tries: m.Tries + 1, Unsent: true},
	}
}
