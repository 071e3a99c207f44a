; Computes a convolution when XLA calls it, with two of oneDNN's primitives (see onednn.py).
;
; One convolution runs at a time, because each takes all cores and because its operands are stored in
; oneDNN's memory objects. All convolutions run in one thread, because OpenMP keeps a team of
; threads for every thread that calls it.

%Step = type { ptr, i32, ptr }                ; primitive, number of arguments, dnnl_exec_arg_t*
%Plan = type { ptr, [3 x ptr], [2 x %Step] }  ; stream; memories of the operands and the result

@mutex = private global [8 x i64] zeroinitializer   ; pthread_mutex_t, unlocked
@wanted = private global [8 x i64] zeroinitializer  ; sem_t
@done = private global [8 x i64] zeroinitializer    ; sem_t
@plan = private global ptr null                     ; the plan that the thread is to execute
@status = private global i32 0                      ; not 0 if the last plan failed
@message = private constant [39 x i8] c"oneDNN could not compute a convolution\00"

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_wait(ptr)
declare i32 @sem_post(ptr)
declare i32 @dnnl_memory_set_data_handle(ptr, ptr)
declare i32 @dnnl_primitive_execute(ptr, ptr, i32, ptr)

; Starts the thread that computes. Returns 0 or an error number.
define i32 @start() {
  call i32 @sem_init(ptr @wanted, i32 0, i32 0)
  call i32 @sem_init(ptr @done, i32 0, i32 0)
  %thread = alloca i64
  %failed = call i32 @pthread_create(ptr %thread, ptr null, ptr @work, ptr null)
  ret i32 %failed
}

define private ptr @work(ptr %nothing) {
  br label %next

next:
  call void @await(ptr @wanted)
  %plan = load ptr, ptr @plan
  %status0 = call i32 @execute(ptr %plan, i32 0)
  %status1 = call i32 @execute(ptr %plan, i32 1)
  %status = or i32 %status0, %status1
  store i32 %status, ptr @status
  call i32 @sem_post(ptr @done)
  br label %next
}

; Waits for a semaphore, again if a signal interrupts sem_wait.
define private void @await(ptr %semaphore) {
  br label %wait

wait:
  %interrupted = call i32 @sem_wait(ptr %semaphore)
  %again = icmp ne i32 %interrupted, 0
  br i1 %again, label %wait, label %posted

posted:
  ret void
}

define private i32 @execute(ptr %plan, i32 %number) {
  %stream = load ptr, ptr %plan
  %primitive_at = getelementptr %Plan, ptr %plan, i32 0, i32 2, i32 %number, i32 0
  %primitive = load ptr, ptr %primitive_at
  %count_at = getelementptr %Plan, ptr %plan, i32 0, i32 2, i32 %number, i32 1
  %count = load i32, ptr %count_at
  %arguments_at = getelementptr %Plan, ptr %plan, i32 0, i32 2, i32 %number, i32 2
  %arguments = load ptr, ptr %arguments_at
  %status = call i32 @dnnl_primitive_execute(ptr %primitive, ptr %stream, i32 %count, ptr %arguments)
  ret i32 %status
}

define private void @place(ptr %plan, i32 %number, ptr %data) {
  %memory_at = getelementptr %Plan, ptr %plan, i32 0, i32 1, i32 %number
  %memory = load ptr, ptr %memory_at
  call i32 @dnnl_memory_set_data_handle(ptr %memory, ptr %data)
  ret void
}

; Every handler calls this function with XLA's call frame and the handler's plan. Returns null or an
; error.
define ptr @convolve(ptr %frame, ptr %plan) {
  %version_asked = call i1 @ffi_answer_version(ptr %frame)
  br i1 %version_asked, label %success, label %compute

compute:
  %data0 = call ptr @ffi_operand(ptr %frame, i64 0)
  %data1 = call ptr @ffi_operand(ptr %frame, i64 1)
  %data2 = call ptr @ffi_result(ptr %frame)
  call i32 @pthread_mutex_lock(ptr @mutex)
  call void @place(ptr %plan, i32 0, ptr %data0)
  call void @place(ptr %plan, i32 1, ptr %data1)
  call void @place(ptr %plan, i32 2, ptr %data2)
  store ptr %plan, ptr @plan
  call i32 @sem_post(ptr @wanted)
  call void @await(ptr @done)
  %status = load i32, ptr @status
  call i32 @pthread_mutex_unlock(ptr @mutex)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %failure, label %success

failure:
  %error = call ptr @ffi_error(ptr %frame, ptr @message)
  ret ptr %error

success:
  ret ptr null
}
