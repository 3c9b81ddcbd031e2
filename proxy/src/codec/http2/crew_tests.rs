//! Who is polled, and when.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;

use super::*;

/// Counts how often it was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Work that is done after `turns` turns, each of which somebody wakes with what it leaves in `wakers`.
fn work(turns: usize, polled: &Rc<Cell<usize>>, wakers: &Rc<RefCell<Vec<Waker>>>) -> Pin<Box<dyn Future<Output = ()>>> {
    let (polled, wakers, mut left) = (Rc::clone(polled), Rc::clone(wakers), turns);
    Box::pin(poll_fn(move |cx| {
        polled.set(polled.get() + 1);
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        wakers.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }))
}

#[test]
fn who_is_woken_is_polled_and_nobody_else() {
    let (count, polled, wakers) = (Arc::new(Count::default()), Rc::default(), Rc::default());
    let keeper = Waker::from(Arc::clone(&count));
    let cx = Context::from_waker(&keeper);
    let mut crew = Crew::new();
    for _ in 0..3 {
        crew.add(|| work(1, &polled, &wakers));
    }
    assert_eq!(polled.get(), 0, "it begins when it is polled");
    crew.poll(&cx);
    crew.poll(&cx);
    assert_eq!((polled.get(), count.0.load(Ordering::SeqCst)), (3, 0));
    let second = wakers.borrow_mut().remove(1);
    second.wake_by_ref();
    second.wake_by_ref();
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "once is enough");
    crew.poll(&cx);
    assert_eq!(polled.get(), 4);
    let others: Vec<Waker> = wakers.borrow_mut().drain(..).collect();
    std::thread::spawn(move || others.into_iter().for_each(Waker::wake)).join().unwrap();
    assert_eq!(count.0.load(Ordering::SeqCst), 2);
    crew.poll(&cx);
    assert_eq!((polled.get(), crew.free.len()), (6, 3));
}

#[test]
fn a_place_is_used_again_and_whoever_still_wakes_it_does_no_harm() {
    let (polled, wakers) = (Rc::default(), Rc::default());
    let cx = Context::from_waker(Waker::noop());
    let mut crew = Crew::new();
    crew.add(|| work(1, &polled, &wakers));
    crew.poll(&cx);
    let late = wakers.borrow()[0].clone();
    late.wake_by_ref();
    crew.poll(&cx);
    assert_eq!((polled.get(), crew.places.len()), (2, 1));
    // Before the next begins, and while it waits.
    late.wake_by_ref();
    crew.add(|| work(2, &polled, &wakers));
    crew.poll(&cx);
    assert_eq!((polled.get(), crew.places.len()), (3, 1));
    late.wake_by_ref();
    crew.poll(&cx);
    assert_eq!(polled.get(), 4);
    crew.poll(&cx);
    assert_eq!(polled.get(), 4);
}

#[test]
fn a_crowd_leaves_no_memory_behind() {
    let (polled, wakers) = (Rc::default(), Rc::default());
    let cx = Context::from_waker(Waker::noop());
    let mut crew = Crew::new();
    for _ in 0..1_000 {
        crew.add(|| work(1, &polled, &wakers));
    }
    crew.poll(&cx);
    let late: Vec<Waker> = wakers.borrow_mut().drain(..).collect();
    late.iter().for_each(Waker::wake_by_ref);
    crew.poll(&cx);
    assert_eq!((polled.get(), crew.places.len(), crew.places.capacity()), (2_000, 0, 0));
    late.iter().for_each(Waker::wake_by_ref);
    crew.add(|| work(0, &polled, &wakers));
    crew.poll(&cx);
    assert_eq!((polled.get(), crew.free.len()), (2_001, 1));
}

#[test]
fn work_that_is_given_up_is_dropped_at_once() {
    let (polled, wakers) = (Rc::default(), Rc::default());
    let mut crew = Crew::new();
    crew.add(|| work(1, &polled, &wakers));
    crew.poll(&Context::from_waker(Waker::noop()));
    assert_eq!(Rc::strong_count(&polled), 2);
    drop(crew);
    assert_eq!(Rc::strong_count(&polled), 1);
    wakers.borrow()[0].wake_by_ref();
}
