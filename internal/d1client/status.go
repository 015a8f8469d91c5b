package d1client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
)

// Finding is what the answer to "how does this card stand" amounts to.
type Finding int

const (
	// LookupFailed: nothing was learned. It is the zero value.
	LookupFailed Finding = iota
	// Found: D1 knows the card and told its operations, possibly none.
	Found
	// CardNotFound: a 404. D1 does not know the card, or the path is wrong, so alone
	// it proves nothing.
	CardNotFound
)

func (f Finding) String() string {
	switch f {
	case Found:
		return "found"
	case CardNotFound:
		return "card-not-found"
	default:
		return "lookup-failed"
	}
}

// StatusAnswer is D1's word on the operations of a card.
type StatusAnswer struct {
	Finding Finding
	// Operations are those that could be read, in D1's order.
	Operations []Operation
	// Skipped counts elements that are not JSON objects. The answer is a clean
	// negative only when both Operations and Skipped are empty.
	Skipped int
	Reply
}

// maxStatusAnswer bounds the body of an answer to a question, in bytes.
const maxStatusAnswer = 1 << 20

// ProductionStatus asks D1 for the production operations of a card. D1 documents
// the answer as the latest status of the card: perhaps one operation of several,
// perhaps without the issuerRequestId.
func (c *Client) ProductionStatus(ctx context.Context, cardID, correlationID string) StatusAnswer {
	started := c.now()
	id := correlation(correlationID)
	if !isID(cardID, maxCardID) {
		return StatusAnswer{Reply: invalidCall(id)}
	}
	res := c.exchange(ctx, request{
		method:        http.MethodGet,
		url:           c.cards + cardID + "/" + c.paths.status,
		correlationID: id,
		maxAnswer:     maxStatusAnswer,
	})
	a := StatusAnswer{Reply: c.reply(res, id, started)}
	switch {
	case res.status == http.StatusNotFound:
		a.Finding, a.Reason = CardNotFound, ReasonNotFound
	case res.status >= 200 && res.status <= 299:
		a.Reason = ReasonUnreadable
		if a.Err != nil {
			break
		}
		ops, skipped, err := parseOperations(res.body)
		if err != nil {
			a.Err = err
			break
		}
		a.Finding, a.Reason = Found, ReasonFound
		a.Operations, a.Skipped = ops, skipped
	}
	return a
}

// parseOperations reads {"operations": [...]}. A body without that list is an error
// and not an empty one: a caller takes an empty list for D1's word that there is no
// order.
func parseOperations(body []byte) (ops []Operation, skipped int, err error) {
	m, _ := parseObject(body)
	var elements []json.RawMessage
	if json.Unmarshal(m.raw("operations"), &elements) != nil || elements == nil {
		return nil, 0, errors.New("d1client: answer has no list of operations")
	}
	for _, raw := range elements {
		op, err := ParseOperation(raw)
		if err != nil {
			skipped++
			continue
		}
		ops = append(ops, op)
	}
	return ops, skipped, nil
}
