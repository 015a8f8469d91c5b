package store

import "context"

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
