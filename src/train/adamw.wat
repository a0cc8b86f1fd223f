;; AdamW over one tensor, four elements at a time: one pass over memory, which is what bounds it.
;; Products with reciprocals in place of divisions: with two divisions an element it is arithmetic that bounds it.
;; `npm run build:kernels` makes adamwBinary.ts of this file.
(module
  (import "palkit" "memory" (memory 0))

  ;; The sum of the squares of $count elements at $at, a multiple of sixteen, in float64. Each quarter is read and summed
  ;; beside the others: one stream of memory, or one sum, would wait for itself.
  (func (export "squaredNorm") (param $at i32) (param $count i32) (result f64)
    (local $end i32) (local $second i32) (local $third i32) (local $fourth i32)
    (local $x v128) (local $wide v128)
    (local $sum1 v128) (local $sum2 v128) (local $sum3 v128) (local $sum4 v128)
    (local.set $second (i32.add (local.get $at) (local.get $count)))
    (local.set $third (i32.add (local.get $second) (local.get $count)))
    (local.set $fourth (i32.add (local.get $third) (local.get $count)))
    (local.set $end (local.get $second))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $x (v128.load (local.get $at)))
        (local.set $wide (f64x2.promote_low_f32x4 (local.get $x)))
        (local.set $sum1 (f64x2.add (local.get $sum1) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $wide (f64x2.promote_low_f32x4
          (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $x) (local.get $x))))
        (local.set $sum1 (f64x2.add (local.get $sum1) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $at (i32.add (local.get $at) (i32.const 16)))
        (local.set $x (v128.load (local.get $second)))
        (local.set $wide (f64x2.promote_low_f32x4 (local.get $x)))
        (local.set $sum2 (f64x2.add (local.get $sum2) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $wide (f64x2.promote_low_f32x4
          (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $x) (local.get $x))))
        (local.set $sum2 (f64x2.add (local.get $sum2) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $second (i32.add (local.get $second) (i32.const 16)))
        (local.set $x (v128.load (local.get $third)))
        (local.set $wide (f64x2.promote_low_f32x4 (local.get $x)))
        (local.set $sum3 (f64x2.add (local.get $sum3) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $wide (f64x2.promote_low_f32x4
          (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $x) (local.get $x))))
        (local.set $sum3 (f64x2.add (local.get $sum3) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $third (i32.add (local.get $third) (i32.const 16)))
        (local.set $x (v128.load (local.get $fourth)))
        (local.set $wide (f64x2.promote_low_f32x4 (local.get $x)))
        (local.set $sum4 (f64x2.add (local.get $sum4) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $wide (f64x2.promote_low_f32x4
          (i8x16.shuffle 8 9 10 11 12 13 14 15 0 1 2 3 4 5 6 7 (local.get $x) (local.get $x))))
        (local.set $sum4 (f64x2.add (local.get $sum4) (f64x2.mul (local.get $wide) (local.get $wide))))
        (local.set $fourth (i32.add (local.get $fourth) (i32.const 16)))
        (br $next)))
    (local.set $sum1 (f64x2.add
      (f64x2.add (local.get $sum1) (local.get $sum2))
      (f64x2.add (local.get $sum3) (local.get $sum4))))
    (f64.add (f64x2.extract_lane 0 (local.get $sum1)) (f64x2.extract_lane 1 (local.get $sum1))))

  ;; Updates $count elements, a multiple of four, of the parameter and of both moments where they lie.
  ;; $keep1 is beta1, $take1 1 - beta1; $step the learning rate over Adam's first correction;
  ;; $widen one over the root of the second; $decay what the parameter is multiplied with.
  (func (export "update")
    (param $parameter i32) (param $gradient i32) (param $first i32) (param $second i32) (param $count i32)
    (param $scale f32) (param $keep1 f32) (param $take1 f32) (param $keep2 f32) (param $take2 f32)
    (param $widen f32) (param $epsilon f32) (param $step f32) (param $decay f32)
    (local $offset i32) (local $end i32)
    (local $g v128) (local $m v128) (local $v v128)
    (local.set $end (i32.shl (local.get $count) (i32.const 2)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $offset) (local.get $end)))
        (local.set $g (f32x4.mul
          (v128.load (i32.add (local.get $gradient) (local.get $offset)))
          (f32x4.splat (local.get $scale))))
        (local.set $m (f32x4.add
          (f32x4.mul (v128.load (i32.add (local.get $first) (local.get $offset))) (f32x4.splat (local.get $keep1)))
          (f32x4.mul (local.get $g) (f32x4.splat (local.get $take1)))))
        (v128.store (i32.add (local.get $first) (local.get $offset)) (local.get $m))
        (local.set $v (f32x4.add
          (f32x4.mul (v128.load (i32.add (local.get $second) (local.get $offset))) (f32x4.splat (local.get $keep2)))
          (f32x4.mul (f32x4.mul (local.get $g) (local.get $g)) (f32x4.splat (local.get $take2)))))
        (v128.store (i32.add (local.get $second) (local.get $offset)) (local.get $v))
        (v128.store (i32.add (local.get $parameter) (local.get $offset))
          (f32x4.sub
            (f32x4.mul
              (v128.load (i32.add (local.get $parameter) (local.get $offset)))
              (f32x4.splat (local.get $decay)))
            (f32x4.mul
              (f32x4.div
                (local.get $m)
                (f32x4.add
                  (f32x4.mul (f32x4.sqrt (local.get $v)) (f32x4.splat (local.get $widen)))
                  (f32x4.splat (local.get $epsilon))))
              (f32x4.splat (local.get $step)))))
        (local.set $offset (i32.add (local.get $offset) (i32.const 16)))
        (br $next)))))
